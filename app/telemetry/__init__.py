"""What an operator sees of the house: metrics, a log line a run, spans. Every name of a metric or log field is here.

Knows no other room: what happened is handed to it as plain records (``records``), once it has happened.
"""
