"""What an agent may do besides talk: one LangChain tool per file.

========================  ===========================================================================
``calculator.py``         arithmetic, exact for whole numbers; reads the expression, never runs it
``clock.py``              the time now in any time zone
``weather.py``            the weather now at a place, from Open-Meteo, with no key
``search_documents.py``   full-text search over a folder of documents
``send_email.py``         an e-mail, put into a Maildir; a person approves it first
========================  ===========================================================================

Every file has the same shape: ``build_<tool>(…) -> BaseTool`` takes what the tool needs (a clock, an address, a
folder) and decorates one typed function with ``@tool(parse_docstring=True)``. The function's docstring is what
the model reads; ``metadata["label"]`` is what a person sees as soon as the model names the tool.

To add a tool, write ``tools/<name>.py`` in that shape and a row above; ``tests/tools/test_tools.py`` will ask for
a docstring, described arguments and a label that ends with "…". Then give it to a graph in ``chains/``.

A tool knows neither the server nor the graphs. It may be called by many runs at once and never holds up the event
loop: it is a plain function, which LangChain runs in a thread, or it has a coroutine. What it cannot do it says
with a ``ToolException``, whose message is written for the model: what is wrong, and what to do instead.
"""
