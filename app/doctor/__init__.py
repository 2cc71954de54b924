"""``millrace doctor``: where between a server and its reader a stream is held, cut or changed, and what cures it.

``measurement`` is what was seen and the arithmetic of a stream's pace, ``wire`` a stream as its bytes arrive,
``verdict`` what is wrong, ``cures`` the lines of configuration that mend it: these do no I/O. ``request`` is what is
asked, ``asking`` asks it, ``command`` is the command.
"""
