"""Our events in a client's words, one file a protocol: ``parse`` a request, ``encode`` an event. Nothing awaits.

An encoder has no state and gives no ids: offsets, message and call ids were decided upstream, so encoding a run
from the start and encoding the rest of it after a cut come to the same.
"""
