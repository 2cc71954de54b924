"""The built-in agents, and the parts that they are made of; a graph of one's own may use the parts as well.

==================  =============================================================================================
``registry``        the agents by name
``chat``            a prompt and a model
``assistant``       a model and its tools, by turns; ``build_assistant`` makes the graph of any model and tools
``approval``        the same, with a tool that waits for a person
``research``        a question taken apart: branches at the same time, one answer
``extract``         an object out of a text; ``facts`` is its own schema, ``schema`` a client's, ``objects`` reads it
------------------  ---------------------------------------------------------------------------------------------
``models``          the model of all of them; ``answering``, ``retries``, ``overlap`` are how it answers
``quick``           has every ``ChatOpenAI`` of the process read its streams as ``deltas``
``shortcut``        the way of a model's plain text past LangChain
``transport``       HTTP to the provider: ``connection``, ``http11``, ``dialling``
``transcript``      a model's message as it was written, before anybody reads it as calls
``checking``        the node that judges calls; ``repair`` mends texts, ``arguments`` asks the tool's schema
``approving``       the node that asks a person
``toolnode``        the node that runs tools, with bounds
``step``            a function as a node, or as what decides where one leads
==================  =============================================================================================

They know LangChain, LangGraph and ``tools/``, and nothing of the server: what is built here can be called from a
notebook as it is.
"""
