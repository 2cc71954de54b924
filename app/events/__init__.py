"""What can happen in a run, and in which order. Plain data and plain functions: nothing here awaits.

* ``event``: the closed set of event types, frozen.
* ``grammar``: which event may follow which, as a table.
* ``codec``: the one JSON form, and how any Python value becomes part of it.
* ``request``: what a run is asked to do, whatever protocol asked.
"""
