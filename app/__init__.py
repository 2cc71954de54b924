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
settings       every knob, typed, the unit in its name; read by main and serve alone
events         what can happen in a run and in which order: frozen payloads, the legal order, one codec
eventlog       keeps each run's events in order and hands them to any number of readers
limits         who may start, how fast, how much: the door of every start, the gate of every model call
runs           turns one request into one log; owns every task. The only room that knows LangChain
protocols      our events in a client's words: parse a request, encode an event
transports     frames on a wire: heartbeats, disconnects, bounds on what comes in
routes         one thin file per public surface
simulator      the provider for when there is no key: an OpenAI-wire server, spoken to over real HTTP
targets        finds the user's own graphs: NAME=MODULE:ATTR and langgraph.json
tomlfile       files that an operator writes, whose mistakes are told with their line
main           create_app: the composition root, the only place that joins ``chains/`` to ``app/``
remote         the commands that speak to a running server
terminal       ``millrace chat``: an agent in the terminal
doctor         ``millrace doctor``: where on its way a stream is held up
web            the page at ``/``: what a person looks at (no Python)
serve          ``millrace serve``: uvicorn, one process or several
cli            the command ``millrace``
=============  ========================================================================================

Beside it stand ``chains/`` (the built-in agents; they know ``tools/`` and nothing of the server) and ``tools/``
(one tool a file; they know neither). Who may import whom is law, kept by ``tests/test_layers.py``::

    errors < events < eventlog, limits < runs;  errors < events < protocols < transports;
    all of these < routes < main < serve < cli
"""

import importlib.util
import sys
from importlib.machinery import PathFinder
from pathlib import Path


def _take_in(name: str, home: str) -> None:
    """Import our own package ``name`` from beside this one, whatever stands first on the path.

    uvicorn puts the working folder there, and a user's folder may hold a ``tools.py`` of its own. (``app.targets``
    gives the user's code the user's.)
    """
    spec = PathFinder.find_spec(name, [home])
    if name in sys.modules or spec is None or spec.loader is None:
        return
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


for _name in ("tools", "chains"):
    _take_in(_name, str(Path(__file__).resolve().parent.parent))
