"""What of a continued answer is new: trims the words that a model says once more before it goes on.

A model that is told to go on with its text may begin with the last word, the last sentence or the whole text again,
and with another blank or an empty line. All of it is known only piece by piece: text is held back as long as what came
may still turn out to be a repetition, and no longer. What is none of that is passed on to the character.

A repetition is the end of the text so far, from the beginning of a word on; from the middle of a word only if it is
long enough not to be chance. Pure: text in, text out.
"""

CHANCE = 8
"""Characters: shorter repetitions that begin in the middle of a word are chance (``1`` and ``11``)."""

_WIDE = "\u2e80"
"""From here on scripts do not part their words: every character may begin one."""


class Overlap:
    """The joint between ``said`` and what follows. ``least``: repetitions of fewer characters are the text's own."""

    def __init__(self, said: str, *, least: int = 1) -> None:
        self._body = said.rstrip()
        self._tail = said[len(self._body) :]
        self._least = least
        self._last_letter = max((at for at, one in enumerate(self._body) if one.isalnum()), default=-1)
        self._held = ""
        self._at = 0  # where in the body a repetition may have begun, at the earliest
        self._joined = False

    def feed(self, text: str) -> str:
        """What of the text that has come may be passed on now."""
        if self._joined:
            return text
        self._held += text
        rest = self._held.lstrip()
        if not rest or self._may_grow(rest):
            return ""
        if self._tail and not rest[self._repeated(rest) :].strip():
            return ""  # the white space behind a repetition is not all there yet
        return self.close()

    def close(self) -> str:
        """What is still held back and is new: nothing more will come, or something that is no text."""
        if self._joined:
            return ""
        self._joined, held, self._held = True, self._held, ""
        rest = held.lstrip()
        new = rest[repeated:] if (repeated := self._repeated(rest)) else held
        text = new.lstrip()
        return _blank(self._tail, new[: len(new) - len(text)]) + text

    def _may_grow(self, rest: str) -> bool:
        """Whether the body holds ``rest`` at a place from which it may be repeated to its end."""
        at = self._body.find(rest, self._at)
        while at >= 0 and not self._counts(at):
            at = self._body.find(rest, at + 1)
        self._at = at if at >= 0 else len(self._body)
        return 0 <= at < len(self._body) - len(rest)

    def _repeated(self, rest: str) -> int:
        """How many of its first characters repeat the body's end: as many as can be."""
        at = self._body.find(rest[:1], max(len(self._body) - len(rest), 0)) if rest else -1
        while at >= 0 and not (self._counts(at) and rest.startswith(self._body[at:])):
            at = self._body.find(rest[:1], at + 1)
        return len(self._body) - at if at >= 0 else 0

    def _counts(self, at: int) -> bool:
        """Whether the body from there on, said again, is a repetition and not chance."""
        length = len(self._body) - at
        if length < self._least or at > self._last_letter:
            return False
        return length >= CHANCE or at == 0 or not (_in_word(self._body[at - 1]) and _in_word(self._body[at]))


def _in_word(character: str) -> bool:
    return (character.isalnum() or character == "_") and character < _WIDE


def _blank(tail: str, lead: str) -> str:
    """What ``lead``, the white space before new text, adds to ``tail``, the white space that is there."""
    if not tail or not lead:
        return lead
    if lead.startswith(tail):
        return lead[len(tail) :]
    if tail.endswith(lead):
        return ""
    if "\n" in lead:
        return "\n" * max(lead.count("\n") - tail.count("\n"), 0) + lead[lead.rindex("\n") + 1 :]
    return lead if "\n" in tail and len(lead) > 1 else ""  # an indentation; a single blank only came with the word
