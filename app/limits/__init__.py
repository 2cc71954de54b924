"""Who may start, how fast, how much: the arithmetic of limits, and the two doors that are kept by it.

Plain arithmetic, with ``now`` as an argument: ``window`` (requests a minute), ``budget`` (tokens and cost a day),
``queue`` (fair between users), ``bucket`` (tokens a minute at the provider), ``throttle`` (how much the provider
bears), ``habits`` (how much of an answer a user lets through). ``policy`` says what holds for whom. ``door`` is what
every start passes, ``gate`` what every model call does.
"""
