"""One thin file per public surface: what a path means, in terms of the rooms below.

* ``access``: who asks.
* ``errors``: the error object, for everything that can go wrong.
* ``agents``: what is served, and starting a run.
* ``runs``: following, fetching, cancelling, pausing a run; threads.
* ``stream``: a run's log as frames, for the streams of both.
* ``websocket``: starting, following and steering many runs over one socket.
* ``langserve``: LangServe's own routes, whose every call is a run.
* ``usage``: what the caller has spent.
* ``health``: probes.
"""
