"""Words, counted."""


def shortened(text: str, words: int = 3) -> str:
    """Give the first few words."""
    kept = text.split()[:words]
    return " ".join(kept) + (" …" if len(text.split()) > words else "")
