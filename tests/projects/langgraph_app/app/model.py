"""The one place that knows the provider; called, so that importing a graph needs no key."""

import os

from langchain_openai import ChatOpenAI


def build_model() -> ChatOpenAI:
    """Make a client of the provider at ``OPENAI_BASE_URL``; a provider without keys takes any."""
    return ChatOpenAI(
        model=os.environ["SUPPORT_MODEL"],
        base_url=os.environ.get("OPENAI_BASE_URL"),
        api_key=os.environ.get("OPENAI_API_KEY", "none"),
        stream_usage=True,
    )
