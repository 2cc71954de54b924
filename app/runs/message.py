"""A message while a model writes it: its text, the tool calls in it, or the object that it is."""

from typing import NamedTuple

from app.events import codec
from app.runs.objects import FIRST_PARSE, Form, Growing, Shape

Place = tuple[str | None, tuple[str, ...]]
"""``(node, namespace)``, as events have them."""


class Call:
    """A tool call while the model writes it. ``given`` is the provider's id of it, ``call_id`` ours."""

    __slots__ = ("args", "call_id", "given", "half", "name", "number", "parse_at", "pending", "size")

    def __init__(self, number: int) -> None:
        self.number = number
        self.call_id = ""
        self.given = ""
        self.name = ""
        self.args: list[str] = []
        self.half = ""
        self.size = 0
        self.parse_at = FIRST_PARSE
        self.pending = False


class Message:
    """A message, and what of it is needed afterwards: its text.

    ``message_id`` is ours, unique in the run; ``given`` is the one by which the graph knows it. ``form``: the model was
    asked for an object, which is ``growing`` then.
    """

    __slots__ = ("calls", "form", "given", "growing", "half", "keyed", "message_id", "path", "place", "text")

    def __init__(self, message_id: str, place: Place, path: str, *, given: str = "", form: Form | None = None) -> None:
        self.message_id = message_id
        self.given = given or message_id
        self.place = place
        self.path = path
        self.form = form
        self.growing = None if form is None else Growing(Shape(form.schema))
        self.text: list[str] = []
        self.half = ""
        self.calls: list[Call] = []
        self.keyed: dict[object, Call] = {}


class Held(NamedTuple):
    """A message whose call was broken off by a pause, as it is kept over a restart."""

    message_id: str
    node: str | None
    namespace: tuple[str, ...]
    path: str
    text: str


LONE = "\ufffd"
"""What stands for half a pair of surrogates whose other half never came."""


def paired(text: str) -> tuple[str, str]:
    """``(text, half)``: a pair of surrogates that a provider cut in two waits for its other half."""
    if text.isascii():
        return text, ""
    if text and "\ud800" <= text[-1] <= "\udbff":
        return codec.text(text[:-1]), text[-1]
    return codec.text(text), ""
