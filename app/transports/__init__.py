"""Frames on a wire, and the wire's own troubles: silence, disconnects, bodies without an end.

* ``wire``: the connections below all of them: their buffers bounded, their lost peers noticed.
* ``wheel``: one timer for all heartbeats, one for all looks at connections.
* ``sse``: a stream of frames as server-sent events, written past the server where nobody stands between.
* ``websocket``: many streams on one socket, in turns.
* ``disconnect``: ends a request's work when its client leaves, for handlers that do not look.
* ``body``: bounds on what a client may send.
"""
