"""What an encoder makes of an event: a frame, whatever wire it goes over."""

from typing import NamedTuple


class Frame(NamedTuple):
    """``data`` is one line without CR, LF or NUL. Only the last frame of an event carries an ``id``."""

    id: str | None
    event: str | None
    data: bytes
