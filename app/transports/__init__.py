"""Frames on a wire, and the wire's own troubles: silence, disconnects, bodies without an end.

* ``wire``: the connections below all of them: their buffers bounded, their lost peers noticed.
* ``sse``: a stream of frames as server-sent events.
* ``websocket``: many streams on one socket, in turns.
* ``disconnect``: ends a request's work when its client leaves, for handlers that do not look.
* ``body``: bounds on what a client may send.
"""
