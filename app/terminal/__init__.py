"""``millrace chat``: an agent in the terminal.

``chat`` is the command and the conversation, ``stream`` brings a run's events, ``answer`` says what they come to,
``screen`` shows that, on a terminal or into a pipe. Nothing here knows the server's inside: it is a client like any
other.
"""

from app.terminal.chat import chat

__all__ = ["chat"]
