"""A builder that is not compiled, in a folder without ``__init__.py``, with an import inside its node."""

from typing import TypedDict

from langgraph.graph import END, START, StateGraph


class Summary(TypedDict):
    """A text, and its first words."""

    text: str
    summary: str


def summarise(state: Summary) -> dict:
    """Cut the text after a few words."""
    from chains.wording import shortened

    return {"summary": shortened(state["text"])}


builder = StateGraph(Summary)
builder.add_node("summarise", summarise)
builder.add_edge(START, "summarise")
builder.add_edge("summarise", END)
