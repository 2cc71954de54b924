"""Turns one request into one log, and owns every task that writes it. The only room that knows LangChain.

* ``agent``: what is served: a runnable, what it takes, what its tools are called.
* ``runner``: the one door: starts runs, finds them, lets them go.
* ``run``: one run: its log, its result, its state as the log tells it.
* ``past``: a run of which only the row is left.
* ``threads``: conversations: one run at a time, and fit for the next turn however the last one ended.
* ``pause``: what is kept of a paused run.
* ``ledger``: what outlives the process: rows of runs, owners of threads, paused runs, checkpoints.
* ``tally``: sums by user and day, written behind: the ledger's tables of what was spent.
* ``report``: what a user has spent, as ``GET /usage`` tells it.
* ``prices``: what a model call costs.
* ``scope``: when a run ends: readers leaving, an explicit cancel, a deadline.
* ``translate``: LangChain's event stream in, our events out.
* ``shortcut``: a model's plain text straight from the provider's reader.
* ``usage``: callbacks that count every model call's tokens, also of those that were cut.
* ``watchdog``: ends a run whose provider has gone silent.
* ``executor``: the threads of synchronous nodes and tools, and which nodes those are.
* ``failure``: an exception in words that may be shown.
* ``tap``: a run's raw events, for protocols that pass LangChain's own objects on.
* ``runnable``: a Runner as a Runnable, for LangServe.
* ``runlog``: the log of a run's steps as JSON patches, for LangServe's ``stream_log`` and its playground.
"""
