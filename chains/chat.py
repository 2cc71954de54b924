"""``chat``: a prompt piped into a model. The smallest agent: plain token streaming, no tools."""

from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables import Runnable

SYSTEM = "You are a helpful assistant. Answer in the language of the question, briefly and exactly."


def build_chat(model: BaseChatModel) -> Runnable[dict[str, Any], AIMessage]:
    """``{"messages": […]}`` → the model's answer."""
    prompt = ChatPromptTemplate.from_messages([("system", SYSTEM), MessagesPlaceholder("messages")])
    return prompt | model
