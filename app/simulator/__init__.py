"""The simulated provider: an OpenAI-wire HTTP server that answers by a script, so that Millrace needs no key.

::

    request.py      what a client may ask, and what a real provider refuses
    script.py       the conversation and the tools offered -> what to answer
      questions.py    the parts of a question, and the tools that fit them
      known_tools.py  how people ask for the tools that Millrace brings
      zones.py        the time zone of a place
      schema.py       a value for a JSON schema, filled from a text
      prose.py        texts of any length
    tokens.py       what counts as a token
    wire.py         the answer as frames and bodies of the OpenAI wire
    faults.py       what it can be told to do wrong
    records.py      every connection and request, for tests and for the log
    connection.py   a TCP connection that is on record
    api.py          the HTTP surface; plays an answer at its pace
    server.py       ``Simulator``: all of it in a thread of its own

Real clients reach it over real HTTP, so the way without a key is the way with one. What it says is deterministic and
says plainly that it is simulated. All but the last four files are pure. Imports nothing of the house.
"""
