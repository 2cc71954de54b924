"""Keeps each run's events in order and hands them to any number of readers. The log is the only truth about a run.

* ``base``: what a log promises, whatever keeps it.
* ``memory``: a bounded log in this process.
* ``subscriber``: a reader: a cursor on a log, that is told of what it missed.
"""
