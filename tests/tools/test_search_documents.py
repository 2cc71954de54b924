import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.tools import BaseTool, ToolException
from typing_extensions import override

from tools.search_documents import PASSAGE_CHARS, build_search_documents, passages, with_table


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    (folder / "deploy").mkdir(parents=True)
    (folder / "streams.md").write_text(
        "# Streams\n\nTokens arrive one by one.\n\n## Resume\n\nA reader sends Last-Event-ID after a disconnect.\n"
    )
    (folder / "deploy" / "proxy.rst").write_text(
        "Proxies\n=======\n\nnginx must not buffer.\n\nTimeouts\n--------\n\nRaise them.\n"
    )
    (folder / "notes.txt").write_text("The café opens at eight.\n")
    return folder


def find(folder: Path, query: str, **bounds: int) -> str:
    answer = build_search_documents(folder, **bounds).invoke({"query": query})
    assert isinstance(answer, str)
    assert str(folder.parent) not in answer
    return answer


def names(answer: str) -> list[str]:
    """The files of the passages, best first."""
    return [passage.splitlines()[0].partition(" › ")[0] for passage in answer.split("\n\n")]


def test_a_passage_comes_with_its_file_and_the_headings_above_it(folder: Path) -> None:
    assert find(folder, "disconnect") == (
        "streams.md › Streams › Resume\nA reader sends Last-Event-ID after a disconnect."
    )


def test_it_reads_underlined_headings_and_folders_within(folder: Path) -> None:
    assert find(folder, "buffer") == "deploy/proxy.rst › Proxies\nnginx must not buffer."
    assert find(folder, "raise") == "deploy/proxy.rst › Proxies › Timeouts\nRaise them."


def test_a_document_without_headings_is_named_alone(folder: Path) -> None:
    assert find(folder, "eight") == "notes.txt\nThe café opens at eight."


@pytest.mark.parametrize("query", ["CAFÉ", "cafe", "cafe\u0301", "open", "opening a café"])
def test_case_accents_and_endings_do_not_matter(folder: Path, query: str) -> None:
    assert names(find(folder, query)) == ["notes.txt"]


def test_a_word_in_a_heading_weighs_more_than_one_in_the_text(folder: Path) -> None:
    (folder / "a.md").write_text("# Other\n\nSomething about quotas and more words around it.\n")
    (folder / "z.md").write_text("# Quotas\n\nSomething about limits and more words around it.\n")
    assert names(find(folder, "quotas")) == ["z.md", "a.md"]


def test_more_of_the_words_make_a_better_passage(folder: Path) -> None:
    (folder / "a.md").write_text("apple\n")
    (folder / "b.md").write_text("apple banana cherry\n")
    assert names(find(folder, "what is an apple banana cherry?"))[0] == "b.md"


def test_no_more_than_five_passages_of_bounded_size_are_told(folder: Path) -> None:
    for number in range(20):
        (folder / f"{number}.md").write_text(f"# Title {number}\n\n" + "apple " + "x" * 100_000)
    answer = find(folder, "apple")
    assert len(names(answer)) == 5
    assert len(answer) < 5 * (PASSAGE_CHARS + 300)


# ── nothing found ──


def test_nothing_found_says_so_and_names_what_is_there(folder: Path) -> None:
    answer = find(folder, "xylophone")
    assert answer == (
        "Nothing in the documents fits 'xylophone'. "
        "To be searched: deploy/proxy.rst, notes.txt, streams.md. Try other words."
    )


def test_the_common_words_of_a_question_are_not_what_it_is_about(folder: Path) -> None:
    assert find(folder, "How do I tune the xylophone?").startswith("Nothing in the documents fits")
    assert names(find(folder, "at")) == ["notes.txt"]


def test_a_long_list_of_files_is_cut(folder: Path) -> None:
    for number in range(50):
        (folder / f"{number}.md").write_text("word")
    assert "and 33 more" in find(folder, "xylophone")


def test_an_empty_folder_is_called_empty(tmp_path: Path) -> None:
    assert "There is none to search." in find(tmp_path, "anything")


def test_a_missing_folder_is_said_without_its_path(tmp_path: Path) -> None:
    with pytest.raises(ToolException, match="missing") as refused:
        find(tmp_path / "gone", "anything")
    assert str(tmp_path) not in str(refused.value)


# ── queries ──


@pytest.mark.parametrize("query", ["", "   ", "?!", '"', "***", "\x00", "\u2028", "\U0001f600"], ids=ascii)
def test_a_query_without_a_word_is_refused(folder: Path, query: str) -> None:
    with pytest.raises(ToolException, match="word"):
        find(folder, query)


def test_a_huge_query_is_refused(folder: Path) -> None:
    with pytest.raises(ToolException, match="few telling words"):
        find(folder, "word " * 1000)


@pytest.mark.parametrize(
    "query",
    [
        'resume"',
        '"resume',
        '" OR path:* OR "resume',
        "resume AND NOT resume",
        "resume NOT resume",
        "NEAR(resume, 5)",
        "^resume",
        "heading : resume",
        "- resume",
        "{path heading} : resume",
        "resume*",
        "resume + resume",
        "(resume",
        "resume\x00",
        "'; DROP TABLE passages; -- resume",
    ],
    ids=ascii,
)
def test_what_is_searched_for_is_never_read_as_syntax(folder: Path, query: str) -> None:
    search = build_search_documents(folder)
    assert "streams.md › Streams › Resume" in search.invoke({"query": query})
    assert "Tokens arrive" in search.invoke({"query": "tokens"})


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> BaseTool:
    folder = tmp_path_factory.mktemp("docs")
    (folder / "a.md").write_text("# Title\n\nSome words to be found.\n")
    return build_search_documents(folder)


@settings(deadline=None)
@given(
    query=st.text(max_size=200)
    | st.lists(st.sampled_from(['"', "AND", "NEAR(", "*", "words", "^", ":", "_", "-"])).map(" ".join)
)
@example(query="_")
@example(query="a\u0301\u0301 \u0e33 हिन्दी 日本語")
def test_any_query_gives_passages_or_a_reason(searched: BaseTool, query: str) -> None:
    with suppress(ToolException):
        assert searched.invoke({"query": query})


# ── the folder ──


class Heard(BaseCallbackHandler):
    """The custom events of a call."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []

    @override
    def on_custom_event(self, name: str, data: Any, **kwargs: Any) -> None:
        self.events.append((name, data))


def test_nothing_is_read_before_the_first_search(tmp_path: Path) -> None:
    search = build_search_documents(tmp_path / "later")
    (tmp_path / "later").mkdir()
    (tmp_path / "later" / "a.md").write_text("apple")
    assert search.invoke({"query": "apple"}) == "a.md\napple"


def test_a_search_that_must_read_many_files_first_tells_how_far_it_is(tmp_path: Path) -> None:
    for number in range(101):
        (tmp_path / f"{number}.md").write_text(f"apple {number}")
    heard = Heard()
    build_search_documents(tmp_path).invoke({"query": "apple"}, {"callbacks": [heard]})
    assert heard.events == [("reading", {"files": 50, "of": 101}), ("reading", {"files": 100, "of": 101})]
    later = build_search_documents(tmp_path)
    later.invoke({"query": "apple"})
    heard.events.clear()
    later.invoke({"query": "apple"}, {"callbacks": [heard]})
    assert heard.events == []


def test_files_that_appear_change_or_vanish_are_noticed(folder: Path) -> None:
    search = build_search_documents(folder)
    assert "Nothing" in search.invoke({"query": "apple"})
    (folder / "new.md").write_text("apple")
    assert names(search.invoke({"query": "apple"})) == ["new.md"]
    (folder / "new.md").write_text("banana and more")
    assert "Nothing" in search.invoke({"query": "apple"})
    assert names(search.invoke({"query": "banana"})) == ["new.md"]
    (folder / "new.md").unlink()
    assert "Nothing" in search.invoke({"query": "banana"})


def test_a_file_swapped_for_another_of_equal_size_and_time_is_noticed(folder: Path) -> None:
    search = build_search_documents(folder)
    (folder / "new.md").write_text("apple")
    os.utime(folder / "new.md", ns=(1, 1))
    assert names(search.invoke({"query": "apple"})) == ["new.md"]
    (folder / "other").write_text("grape")
    os.utime(folder / "other", ns=(1, 1))
    (folder / "other").replace(folder / "new.md")
    assert names(search.invoke({"query": "grape"})) == ["new.md"]


def test_the_folder_is_not_left_through_links(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "key.md").write_text("apple")
    (folder / "link.md").symlink_to(tmp_path / "private" / "key.md")
    (folder / "linked").symlink_to(tmp_path / "private", target_is_directory=True)
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    (folder / "broken.md").symlink_to(tmp_path / "nowhere")
    assert "Nothing" in find(folder, "apple")
    assert names(find(folder, "disconnect")) == ["streams.md"]


def test_a_folder_that_is_itself_a_link_is_searched(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder, target_is_directory=True)
    assert names(find(tmp_path / "link", "disconnect")) == ["streams.md"]


def test_hidden_and_foreign_files_are_not_read(folder: Path) -> None:
    (folder / ".git").mkdir()
    for name in (".env.md", ".git/a.md", "code.py", "data.json", "README"):
        (folder / name).write_text("apple")
    assert "Nothing" in find(folder, "apple")


def test_files_that_are_no_text_are_left_out_and_counted(folder: Path) -> None:
    (folder / "binary.md").write_bytes(b"apple\x00")
    (folder / "latin.txt").write_bytes(b"apple caf\xe9")
    (folder / "empty.md").write_bytes(b"")
    assert find(folder, "apple").endswith("Left out, as empty, too large, too many or no text: 3.")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_does_not_hold_up_the_search(folder: Path) -> None:
    os.mkfifo(folder / "pipe.md")
    assert names(find(folder, "disconnect")) == ["streams.md"]


@pytest.mark.skipif(os.name == "nt", reason="such names cannot be made there")
def test_names_that_are_no_text_are_left_out(folder: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.md")).write_text("apple")
    (folder / "two\nlines.md").write_text("apple")
    assert "Nothing" in find(folder, "apple")


@pytest.mark.parametrize(
    "bounds",
    [{"max_files": 3}, {"max_file_bytes": 500}, {"max_total_bytes": 500}],
    ids=lambda bounds: next(iter(bounds)),
)
def test_what_lies_past_a_bound_is_left_out_and_counted(folder: Path, bounds: dict[str, int]) -> None:
    (folder / "z").mkdir()
    (folder / "z" / "last.md").write_text("apple " * 100)
    assert find(folder, "apple", **bounds).endswith("no text: 1.")
    assert names(find(folder, "eight", **bounds)) == ["notes.txt"]


def test_a_folder_of_countless_other_files_is_not_walked_to_its_end(folder: Path) -> None:
    (folder / "a").mkdir()
    for number in range(30):
        (folder / "a" / f"{number}.bin").touch()
    (folder / "z").mkdir()
    (folder / "z" / "last.md").write_text("apple")
    assert "Nothing" in find(folder, "apple", max_files=1)


def test_a_very_deep_folder_is_not_walked_to_its_end(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["d"] * 300)
    deep.mkdir(parents=True)
    (deep / "a.md").write_text("apple")
    (tmp_path / "a.md").write_text("apple")
    assert find(tmp_path, "apple") == "a.md\napple"


def test_many_threads_may_search_while_files_change(folder: Path) -> None:
    search = build_search_documents(folder)

    def look(number: int) -> str:
        (folder / f"{number % 4}.txt").write_text(f"word {number}")
        return str(search.invoke({"query": "disconnect"}))

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(look, range(80)))
    assert {names(answer)[0] for answer in answers} == {"streams.md"}


async def test_the_tool_answers_a_call_of_the_model(folder: Path) -> None:
    assert names(await build_search_documents(folder).ainvoke({"query": "disconnect"})) == ["streams.md"]


# ── passages ──


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("# Only a heading\n", []),
        ("plain", [("", "plain")]),
        ("\ufeff# A\nx", [("", "\ufeff# A\nx")]),
        ("# A\nx\n# B\ny", [("A", "x"), ("B", "y")]),
        ("# A\n## B\nx\n# C\ny", [("A › B", "x"), ("C", "y")]),
        ("#hash\n#\n# C#\nx", [("", "#hash\n#"), ("C#", "x")]),
        ("```\n# no heading\n```\nx", [("", "```\n# no heading\n```\nx")]),
        ("===\nTop\n===\nx\n\nSub\n---\ny", [("Top", "x"), ("Top › Sub", "y")]),
        ("one\ntwo\n---\nx", [("", "one\ntwo\nx")]),
        ("# A\r\nx\r\n", [("A", "x")]),
    ],
)
def test_text_is_split_at_its_headings(text: str, expected: list[tuple[str, str]]) -> None:
    assert list(passages(text)) == expected


@settings(deadline=None)
@given(st.text(alphabet="ab #=-`\n\t", max_size=4000))
@example("x" * 5000)
@example("word " * 5000)
@example(" " * 5000 + "x")
@example("# " + "a#" * 5000)
def test_passages_are_bounded_and_never_empty(text: str) -> None:
    assert all(body and len(heading) < 700 and len(body) <= 2 * PASSAGE_CHARS for heading, body in passages(text))


@settings(deadline=None)
@given(st.text(alphabet="ab \n", max_size=4000))
@example("ab" * 5000)
def test_no_letter_of_a_text_is_lost(text: str) -> None:
    assert "".join("".join(body.split()) for _, body in passages(text)) == "".join(text.split())


def test_a_long_paragraph_is_cut_between_words() -> None:
    found = [body for _, body in passages("word " * 2000)]
    assert all(set(body.split()) == {"word"} for body in found)
    assert sum(len(body.split()) for body in found) == 2000


# ── SQLite ──


def test_an_sqlite_without_fts5_is_named_and_closed() -> None:
    class Small(sqlite3.Connection):
        def execute(self, *_: Any) -> sqlite3.Cursor:
            raise sqlite3.OperationalError("no such module: fts5")

    small = sqlite3.connect(":memory:", factory=Small)
    with pytest.raises(ToolException, match="without FTS5"):
        with_table(small)
    with pytest.raises(sqlite3.ProgrammingError):
        small.cursor()
