"""Millrace: a run is an ordered log of typed events; everything else writes that log or reads it.

The rooms, in the order the data passes through them::

    routes ─▶ protocols.parse ─▶ runs.Runner.start ─▶ the agent's graph, by astream_events
                                        │
                                        ▼
                  runs.translate ─▶ runs.usage ─▶ eventlog.append   (the offset is given here)
                                                        │
    bytes ◀─ transports ◀─ protocols.encode ◀─ eventlog.Subscriber  (a cursor)

=============  ========================================================================================
errors         the tree of errors: code, HTTP status, retryable
settings       every knob, typed, the unit in its name; read by main and cli alone
events         what can happen in a run and in which order: frozen payloads, the legal order, one codec
eventlog       keeps each run's events in order and hands them to any number of readers
runs           turns one request into one log; owns every task. The only room that knows LangChain
protocols      our events in a client's words: parse a request, encode an event
transports     frames on a wire: heartbeats, disconnects, bounds on what comes in
routes         one thin file per public surface
simulator      the provider for when there is no key: an OpenAI-wire server, spoken to over real HTTP
targets        finds the user's own graphs: NAME=MODULE:ATTR and langgraph.json
main           create_app: the composition root, the only place that joins ``chains/`` to ``app/``
cli            the command ``millrace``
=============  ========================================================================================

Beside it stand ``chains/`` (the built-in agents; they know ``tools/`` and nothing of the server) and ``tools/``
(one tool a file; they know neither). Who may import whom is law, kept by ``tests/test_layers.py``::

    errors < events < eventlog < runs;  errors < events < protocols < transports;  all of these < routes < main < cli
"""
