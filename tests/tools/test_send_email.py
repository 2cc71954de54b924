import email
import mailbox
from concurrent.futures import ThreadPoolExecutor
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import ToolMessage
from langchain_core.tools import BaseTool, ToolException

from tools.send_email import addresses, build_send_email, compose, one_line, text_of

LETTER = {"to": "ada@example.com", "subject": "The build", "body": "It is green.\nYours, a machine"}


@pytest.fixture
def outbox(tmp_path: Path) -> Path:
    """A folder that is not there yet, nor the one it lies in."""
    return tmp_path / "mail" / "outbox"


@pytest.fixture
def send_email(outbox: Path) -> BaseTool:
    return build_send_email(outbox)


def send(tool: BaseTool, call_id: str = "c1", thread: str | None = "t1", **changed: str) -> str:
    call = {"type": "tool_call", "id": call_id, "name": tool.name, "args": {**LETTER, **changed}}
    message = tool.invoke(call, {"configurable": {} if thread is None else {"thread_id": thread}})
    assert isinstance(message, ToolMessage)
    return str(message.content)


def letters(outbox: Path) -> list[EmailMessage]:
    """What a mail program finds there."""
    return [email.message_from_bytes(bytes(one), policy=default) for one in mailbox.Maildir(outbox, create=False)]


def test_nothing_is_made_before_the_first_letter(outbox: Path, send_email: BaseTool) -> None:
    assert not outbox.parent.exists()


def test_a_letter_is_a_message_in_a_maildir_that_any_mail_program_reads(outbox: Path, send_email: BaseTool) -> None:
    said = send(send_email)
    (letter,) = letters(outbox)
    assert (letter["To"], letter["Subject"], letter["From"]) == ("ada@example.com", "The build", "millrace@localhost")
    assert letter["Date"].datetime.utcoffset() is not None
    assert letter.get_content().rstrip("\n") == LETTER["body"]
    assert said == (f"The message to ada@example.com was put into the outbox. Its id is {letter['Message-ID']}.")
    assert list((outbox / "tmp").iterdir()) == []


def test_only_the_owner_can_read_the_outbox(outbox: Path, send_email: BaseTool) -> None:
    send(send_email)
    assert {one.stat().st_mode & 0o077 for one in (outbox, *outbox.iterdir())} == {0}


def test_words_of_any_language_arrive_as_they_were_written(outbox: Path, send_email: BaseTool) -> None:
    send(send_email, subject="Grüße an 部長 🎉", body="Ünïcödé: 日本語\n.\nFrom here on\n" + "long " * 500)
    (letter,) = letters(outbox)
    assert letter["Subject"] == "Grüße an 部長 🎉"
    assert letter.get_content().rstrip("\n") == "Ünïcödé: 日本語\n.\nFrom here on\n" + "long " * 500


def test_several_people_are_written_to_at_once(outbox: Path, send_email: BaseTool) -> None:
    send(send_email, to="ada@example.com, bob@example.org,ada@example.com")
    (letter,) = letters(outbox)
    assert letter["To"] == "ada@example.com, bob@example.org"


@pytest.mark.parametrize(
    "to",
    [
        "", " ", ",", "ada", "ada@", "@example.com", "ada@localhost", "ada@example.com,", "ada@exa mple.com",
        "Ada <ada@example.com>", "ada@example.com\nBcc: eve@example.com", "ada@example.com\r\n\r\nHello",
        "ada@example.com\n", "ada@-x.com", "a@b@c.com", "ädä@example.com", "ada@example.com;eve@example.com",
        f"{'a' * 65}@example.com", f"ada@{'a.' * 200}com", ", ".join(f"a{n}@example.com" for n in range(21)),
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused_and_nothing_is_written(outbox: Path, send_email: BaseTool, to: str) -> None:
    with pytest.raises(ToolException) as refused:
        send(send_email, to=to)
    assert len(str(refused.value)) < 200
    assert not outbox.exists()


@pytest.mark.parametrize("subject", ["", "  ", "a\nb", "Hi\r\nBcc: eve@example.com", "a\0b", "\ud800", "x" * 201])
def test_a_subject_is_one_line(outbox: Path, send_email: BaseTool, subject: str) -> None:
    with pytest.raises(ToolException, match="must be one line"):
        send(send_email, subject=subject)
    assert not outbox.exists()


@pytest.mark.parametrize("body", ["", " \n ", "a\0b", "\ud800", "\x1b[31m", "x" * 100_001])
def test_a_body_is_a_text(outbox: Path, send_email: BaseTool, body: str) -> None:
    with pytest.raises(ToolException):
        send(send_email, body=body)
    assert not outbox.exists()


@given(st.text(max_size=80), st.text(max_size=80), st.text(max_size=200))
def test_no_argument_becomes_a_header_of_its_own(to: str, subject: str, body: str) -> None:
    try:
        letter = compose("millrace@localhost", addresses(to or "ada@example.com"), one_line(subject), text_of(body))
    except ToolException:
        return
    read = email.message_from_bytes(bytes(letter), policy=default)
    expected = ["From", "To", "Subject", "Date", "Content-Type", "Content-Transfer-Encoding", "MIME-Version"]
    assert sorted(read.keys()) == sorted(expected)


# -- once -------------------------------------------------------------------------------------------------------------


def test_a_call_that_is_made_again_writes_no_second_letter(outbox: Path, send_email: BaseTool) -> None:
    first, second = send(send_email), send(send_email)
    assert len(letters(outbox)) == 1
    assert "is in the outbox already" in second
    assert first.rpartition("Its id is ")[2] == second.rpartition("Its id is ")[2]


def test_nor_when_a_mail_program_has_seen_the_first(outbox: Path, send_email: BaseTool) -> None:
    send(send_email)
    (new,) = (outbox / "new").iterdir()
    new.rename(outbox / "cur" / f"{new.name}:2,S")
    assert "is in the outbox already" in send(build_send_email(outbox))  # of another server, too
    assert len(letters(outbox)) == 1


@pytest.mark.parametrize(
    "other",
    [{"call_id": "c2"}, {"thread": "t2"}, {"body": "Another."}, {"to": "bob@example.com"}, {"thread": None}],
    ids=str,
)
def test_another_call_writes_a_letter_of_its_own(outbox: Path, send_email: BaseTool, other: dict[str, Any]) -> None:
    send(send_email)
    send(send_email, **other)
    assert len(letters(outbox)) == 2


def test_the_same_call_many_times_at_once_writes_one_letter(outbox: Path, send_email: BaseTool) -> None:
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda _: send(send_email), range(64)))
    assert len(letters(outbox)) == 1
    assert list((outbox / "tmp").iterdir()) == []


# -- a folder that fails ----------------------------------------------------------------------------------------------


@pytest.fixture
def occupied(outbox: Path) -> Path:
    """A file stands where the outbox should be."""
    outbox.parent.mkdir()
    outbox.write_text("a file")
    return outbox


def test_an_outbox_that_cannot_be_written_is_told_without_its_path(occupied: Path, send_email: BaseTool) -> None:
    with pytest.raises(ToolException) as failed:
        send(send_email)
    assert str(failed.value) == "The outbox cannot be written, so no message was sent. Say so in your answer."


def test_it_waits_for_approval(send_email: BaseTool) -> None:
    assert (send_email.metadata or {})["needs_approval"] is True
