"""What is printed for good, and what is only there for now. The terminal itself is tmux's matter: see ``test_chat``."""

import re
from io import StringIO

from rich.console import Console
from rich.text import Text

from app.terminal.screen import Pipe, Terminal

CODE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def a_terminal() -> tuple[Terminal, StringIO]:
    out = StringIO()
    return Terminal(Console(file=out, force_terminal=True, color_system=None, width=40, height=12)), out


def written(out: StringIO) -> str:
    """What was written since the last look."""
    text = CODE.sub("", out.getvalue())
    out.seek(0)
    out.truncate()
    return text


def test_a_note_waits_for_the_end_of_the_text_that_is_open() -> None:
    screen, out = a_terminal()
    screen.write("One")
    screen.note(Text("noted"))
    screen.refresh(now=True)
    assert written(out).strip() == "One"
    screen.write(" two")
    screen.end()
    screen.refresh(now=True)
    assert written(out).split("\n") == ["\rOne two", "", "noted", ""]


def test_what_was_discarded_is_gone_and_what_was_printed_stays() -> None:
    screen, out = a_terminal()
    screen.write("One.\n\nTwo.\n\nThr")
    screen.refresh(now=True)
    assert written(out).split("\n")[:3] == ["\rOne.", "", "Two."]
    screen.discard()
    screen.note(Text("noted"))
    screen.refresh(now=True)
    assert "Thr" not in written(out)


def test_a_status_is_one_row_and_is_written_over() -> None:
    screen, out = a_terminal()
    screen.status([Text("waiting " * 20), Text("second")])
    screen.refresh(now=True)
    assert [len(line) <= 39 for line in written(out).split("\n")] == [True, True, True]
    screen.status([])
    screen.note(Text("done"))
    screen.refresh(now=True)
    assert "\x1b[2A" in out.getvalue()
    assert written(out).strip() == "done"


def test_a_long_table_that_grows_shows_its_end_and_is_printed_whole() -> None:
    screen, out = a_terminal()
    screen.write("|a|b|\n|-|-|\n" + "".join(f"|{at}|x|\n" for at in range(30)))
    screen.refresh(now=True)
    shown = written(out)
    assert "29" in shown
    assert "12" not in shown
    screen.end()
    screen.refresh(now=True)
    assert all(f" {at} " in written_line for at, written_line in enumerate(_rows(written(out))))


def _rows(text: str) -> list[str]:
    return [line for line in text.split("\n") if re.match(r" \d+ ", line)]


def test_a_pipe_gets_the_text_as_it_is_and_its_other_end_all_else() -> None:
    out, about = StringIO(), StringIO()
    screen = Pipe(out, Console(file=about))
    screen.write("**a** ")
    screen.status([Text("waiting")])
    screen.note(Text("noted"))
    screen.write("[b]")
    screen.end()
    screen.end()
    assert (out.getvalue(), about.getvalue()) == ("**a** [b]\n", "noted\n")
