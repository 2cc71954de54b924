"""E-mails, written into a Maildir for a mail program to deliver: this tool speaks to no server and needs no password.

It is marked ``needs_approval``: a graph that heeds the mark asks a person before a message is written. A message
appears in the folder whole or not at all, and a call that is made again on its thread (a server was killed before it
had noted the first) finds its own message there and writes no second one.

What the model wrote never becomes a header of its own: addresses are bare and plain, the subject is one line.
"""

import hashlib
import os
import re
import unicodedata
import uuid
from datetime import UTC, datetime
from email.message import EmailMessage
from email.policy import default
from email.utils import format_datetime
from pathlib import Path
from typing import Annotated, Final

from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, InjectedToolCallId, ToolException, tool

MAX_RECIPIENTS: Final = 20
MAX_ADDRESS: Final = 254  # RFC 5321, 4.5.3.1.3
MAX_SUBJECT: Final = 200
MAX_BODY: Final = 100_000
SENDER: Final = "millrace@localhost"

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
# What HTML's <input type=email> takes, with a dot in the domain: a model that leaves it out has made it up.
_ADDRESS = re.compile(rf"[A-Za-z0-9.!#$%&'*+/=?^_`{{|}}~-]{{1,64}}@{_LABEL}(?:\.{_LABEL})+")


def build_send_email(outbox: Path, sender: str = SENDER) -> BaseTool:
    """The tool: ``to``, ``subject`` and ``body`` in, what was done with the message out.

    ``outbox``: a Maildir, made when the first message is written. ``ToolException`` for what is no address, no subject
    or no text, and where the folder cannot be written.
    """

    @tool(parse_docstring=True)
    def send_email(
        to: str, subject: str, body: str, tool_call_id: Annotated[str, InjectedToolCallId], config: RunnableConfig
    ) -> str:
        """Send an e-mail in plain text. A person reviews it before it goes out.

        Args:
            to: The address of the recipient, such as "ada@example.com"; several are separated by commas.
            subject: The subject, one line that says what the message is about.
            body: The text of the message, complete and ready to be read, without placeholders.
        """
        recipients = addresses(to)
        message = compose(sender, recipients, one_line(subject), text_of(body))
        thread = config.get("configurable", {}).get("thread_id") or uuid.uuid4()
        name = key(str(thread), tool_call_id, to, subject, body)
        message["Message-ID"] = f"<{name}@{sender.rpartition('@')[2]}>"
        new = deliver(outbox, name, bytes(message))
        what = "was put into the outbox" if new else "is in the outbox already, from an earlier try of this call"
        return f"The message to {', '.join(recipients)} {what}. Its id is {message['Message-ID']}."

    send_email.metadata = {"label": "Writing an e-mail…", "needs_approval": True}
    return send_email


# ── what was written ─────────────────────────────────────────────────────────────────────────────────────────────


def addresses(text: str) -> list[str]:
    """The addresses in ``text``, each once; raises ``ToolException`` when one of them is none."""
    found = list(dict.fromkeys(part.strip(" ") for part in text.split(",")))
    for address in found:
        if len(address) > MAX_ADDRESS or not _ADDRESS.fullmatch(address):
            raise ToolException(f'{address[:60]!r} is no e-mail address. Give bare ones, such as "ada@example.com".')
    if len(found) > MAX_RECIPIENTS:
        raise ToolException(f"A message may go to {MAX_RECIPIENTS} people at the most, not to {len(found)}.")
    return found


def one_line(subject: str) -> str:
    """``subject``, if it is one printable line; raises ``ToolException`` otherwise."""
    if not subject.strip() or len(subject) > MAX_SUBJECT or not subject.isprintable():
        raise ToolException(f"The subject must be one line of 1 to {MAX_SUBJECT} characters.")
    return subject.strip()


def text_of(body: str) -> str:
    """``body``, if it is a text; raises ``ToolException`` otherwise."""
    if not body.strip():
        raise ToolException("The message has no text. Write one.")
    if len(body) > MAX_BODY:
        raise ToolException(f"The text is longer than {MAX_BODY:,} characters. Write a shorter one.")
    if any(unicodedata.category(letter) in {"Cc", "Cs"} and letter not in "\r\n\t" for letter in body):
        raise ToolException("The text holds control characters. Write it without them.")
    return body


def compose(sender: str, to: list[str], subject: str, body: str) -> EmailMessage:
    """A message as RFC 5322 has it, without its id."""
    message = EmailMessage(policy=default)
    message["From"] = sender
    message["To"] = ", ".join(to)
    message["Subject"] = subject
    message["Date"] = format_datetime(datetime.now(UTC))
    message.set_content(body)
    return message


# ── the outbox ───────────────────────────────────────────────────────────────────────────────────────────────────


def key(*parts: str) -> str:
    """The same for the same call on the same thread, and for no other."""
    return hashlib.blake2b("\0".join(parts).encode("utf-8", "replace"), digest_size=16).hexdigest()


def deliver(outbox: Path, name: str, message: bytes) -> bool:
    """Put the message into the Maildir under that name; False: it is there already, read or not.

    Raises ``ToolException`` where the folder cannot be written.
    """
    try:
        for folder in (outbox, *(outbox / part for part in ("tmp", "new", "cur"))):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if (outbox / "new" / name).exists() or any((outbox / "cur").glob(f"{name}*")):
            return False
        draft = outbox / "tmp" / f"{name}.{uuid.uuid4().hex}"
        with draft.open("xb") as file:
            file.write(message)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(outbox / "new" / name)
    except OSError as error:
        raise ToolException("The outbox cannot be written, so no message was sent. Say so in your answer.") from error
    return True
