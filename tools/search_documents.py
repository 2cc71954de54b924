"""Full-text search over a folder of documents, with nothing but SQLite's FTS5.

The index lives in memory. It is built at the first search, which tells how far it is; each later one compares the
folder with it (names, times, sizes) and reads again only what changed. Files, bytes and directory entries are
bounded: what lies past a bound is left out.

It never leaves the folder: symbolic links are not followed, hidden names not entered, and paths are told relative
to it. Words to search for are quoted one by one: none of them is ever read as FTS5 syntax.
"""

import itertools
import os
import re
import sqlite3
import stat
import threading
import unicodedata
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from langchain_core.callbacks import dispatch_custom_event
from langchain_core.tools import BaseTool, ToolException, tool

SUFFIXES: Final = frozenset((".md", ".markdown", ".rst", ".txt"))
MAX_QUERY: Final = 1000
MAX_TERMS: Final = 32
MAX_PASSAGES: Final = 5
MAX_LISTED: Final = 20
PASSAGE_CHARS: Final = 1200
TOLD_EVERY: Final = 50  # files that are read
MAX_TITLE: Final = 100
MAX_DEPTH: Final = 32
TRAIL: Final = " › "
# English words that stand in every passage, so that a question about something unknown finds nothing.
COMMON: Final = re.compile(
    "a|about|an|and|any|are|as|at|be|by|can|do|does|for|from|has|have|how|i|in|is|it|its|me|my|of|on|or|"
    "that|the|their|there|this|to|was|we|what|when|where|which|who|why|will|with|you|your"
)


def build_search_documents(
    folder: Path,
    *,
    max_files: int = 1000,
    max_file_bytes: int = 1 << 20,
    max_total_bytes: int = 32 << 20,
) -> BaseTool:
    """The search: ``query`` in, up to five passages with file and heading out; ``folder`` is first read when used.

    Past ``max_files`` (outer folders come first), ``max_file_bytes`` each and ``max_total_bytes`` together, files
    are left out. ``ToolException`` for an empty query, a folder that is not there, or an SQLite without FTS5.
    """
    index = Index(folder, Bounds(max_files, max_file_bytes, max_total_bytes))

    @tool(parse_docstring=True)
    def search_documents(query: str) -> str:
        """Search the documents at hand, and get the passages that fit best, each with its file and heading.

        Args:
            query: The words to look for, for example "resume after a disconnect". Few and telling ones find most.
        """
        return index.search(query, lambda done, of: dispatch_custom_event("reading", {"files": done, "of": of}))

    search_documents.metadata = {"label": "Searching the documents…"}
    return search_documents


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much of a folder is read; past a bound, files are left out."""

    files: int
    file_bytes: int
    total_bytes: int

    @property
    def entries(self) -> int:
        """How many directory entries are looked at, documents or not."""
        return 20 * self.files


@dataclass(frozen=True, slots=True)
class Stamp:
    """What tells a file from its next version without reading it."""

    modified_ns: int
    changed_ns: int
    inode: int
    size: int


class Index:
    """The passages of one folder. Any number of threads may search; one at a time reads or asks the database."""

    def __init__(self, folder: Path, bounds: Bounds) -> None:
        self._folder = folder
        self._bounds = bounds
        self._lock = threading.Lock()
        self._read: dict[str, Stamp] = {}
        self._left_out = 0
        self._database: sqlite3.Connection | None = None

    def search(self, query: str, reading: Callable[[int, int], object]) -> str:
        """The best passages for ``query`` as text, or what there is to search when none fits.

        Where many files must be read first, ``reading`` is told how many of how many have been, every now and then.
        """
        expression = match_expression(query)
        with self._lock:
            database = self._opened()
            self._refresh(database, reading)
            hits = database.execute(SEARCH, (expression, MAX_PASSAGES)).fetchall()
            if hits:
                return "\n\n".join(f"{where}\n{snippet}" for where, snippet in hits)
            return self._nothing_for(query, database)

    def _opened(self) -> sqlite3.Connection:
        if self._database is None:
            self._database = with_table(sqlite3.connect(":memory:", check_same_thread=False))
            weakref.finalize(self, self._database.close)
        return self._database

    def _refresh(self, database: sqlite3.Connection, reading: Callable[[int, int], object]) -> None:
        """Read again what changed; all of it or, when something fails, none."""
        found, self._left_out = self._scan()
        changed = [path for path, stamp in found.items() if self._read.get(path) != stamp]
        outdated = {path for path, stamp in self._read.items() if found.get(path) != stamp}
        with database:
            if outdated:
                # One pass over the table, however many there are: FTS5 keeps no index of the paths.
                database.create_function("outdated", 1, outdated.__contains__)
                database.execute("DELETE FROM passages WHERE outdated(path)")
            for done, path in enumerate(changed):
                if done and done % TOLD_EVERY == 0:
                    reading(done, len(changed))
                text = read_text(self._folder / path, self._bounds.file_bytes)
                rows = ((path, heading, body) for heading, body in passages(text))
                database.executemany("INSERT INTO passages VALUES (?, ?, ?)", rows)
        self._read = found

    def _scan(self) -> tuple[dict[str, Stamp], int]:
        """The documents within the bounds, by relative path, and how many there are beside them."""
        if not self._folder.is_dir():
            raise ToolException("The folder of the documents is missing. Answer without them, and say so.")
        found: dict[str, Stamp] = {}
        size = left_out = 0
        for path, stamp in documents(self._folder, self._bounds.entries):
            full = len(found) == self._bounds.files or size + stamp.size > self._bounds.total_bytes
            if full or stamp.size > self._bounds.file_bytes:
                left_out += 1
            else:
                found[path] = stamp
                size += stamp.size
        return found, left_out

    def _nothing_for(self, query: str, database: sqlite3.Connection) -> str:
        paths = [path for (path,) in database.execute("SELECT DISTINCT path FROM passages ORDER BY path")]
        listed = ", ".join(paths[:MAX_LISTED]) + (f" and {more} more" if (more := len(paths) - MAX_LISTED) > 0 else "")
        there = f"To be searched: {listed}. Try other words." if paths else "There is none to search."
        unread = self._left_out + len(self._read) - len(paths)
        beside = f" Left out, as empty, too large, too many or no text: {unread}." if unread else ""
        return f"Nothing in the documents fits {query[:100]!r}. {there}{beside}"


# ── the database ─────────────────────────────────────────────────────────────────────────────────────────────────

# A word in a heading weighs four times one in the text. The lowest bm25 is the best.
SEARCH: Final = """
    SELECT path || CASE heading WHEN '' THEN '' ELSE ' › ' || heading END, snippet(passages, 2, '', '', '…', 64)
    FROM passages WHERE passages MATCH ? ORDER BY bm25(passages, 0, 4, 1), rowid LIMIT ?
"""
TABLE: Final = """
    CREATE VIRTUAL TABLE passages
    USING fts5 (path UNINDEXED, heading, body, tokenize = 'porter unicode61 remove_diacritics 2')
"""


def with_table(database: sqlite3.Connection) -> sqlite3.Connection:
    """``database`` with an empty table of passages; closed, with ``ToolException``, when SQLite has no FTS5."""
    try:
        database.execute(TABLE)
    except sqlite3.OperationalError as error:
        database.close()
        raise ToolException(
            "Documents cannot be searched: the SQLite of this Python was built without FTS5. Answer without them; "
            "whoever runs the server can use a Python from python.org, conda or the system's packages, which have it."
        ) from error
    return database


def match_expression(query: str) -> str:
    """``query`` as an FTS5 expression: each word quoted, any of them enough."""
    if len(query) > MAX_QUERY:
        raise ToolException(f"The query is over {MAX_QUERY} characters long. Search for a few telling words.")
    words = re.findall(r"\w+", unicodedata.normalize("NFC", query).lower())
    if not words:
        raise ToolException("The query holds no word. Give one or more words to search for.")
    telling = [word for word in words if not COMMON.fullmatch(word)] or words
    return " OR ".join(f'"{word}"' for word in list(dict.fromkeys(telling))[:MAX_TERMS])


# ── the folder ───────────────────────────────────────────────────────────────────────────────────────────────────


def documents(folder: Path, entries: int) -> Iterator[tuple[str, Stamp]]:
    """The documents under ``folder``, by relative path, until ``entries`` names were looked at."""
    for directory, folders, files in os.walk(folder, followlinks=False):
        within = Path(directory).relative_to(folder)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and len(within.parts) < MAX_DEPTH)
        for name in sorted(files):
            path = (within / name).as_posix()
            if is_document(path) and (stamp := stamp_of(folder / path)):
                yield path, stamp
        entries -= len(folders) + len(files)
        if entries < 0:
            return


def is_document(path: str) -> bool:
    """Whether ``path`` is named like a document. A name that is no text could not be told to anyone."""
    name = path.rpartition("/")[2]
    return not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES and path.isprintable()


def stamp_of(path: Path) -> Stamp | None:
    """The stamp of a plain file; ``None`` for links, pipes and what has gone meanwhile."""
    try:
        status = path.lstat()
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return Stamp(status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_size)


def read_text(path: Path, most: int) -> str:
    """The text of a file, up to ``most`` bytes; empty when it cannot be read or is no UTF-8 text."""
    try:
        with path.open("rb") as file:
            text = file.read(most).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return ""
    return "" if "\0" in text else text


# ── the passages of a document ───────────────────────────────────────────────────────────────────────────────────


def passages(text: str) -> Iterator[tuple[str, str]]:
    """The text in pieces of some ``PASSAGE_CHARS``, each with the trail of headings above it."""
    for heading, lines in sections(text):
        yield from ((heading, piece) for piece in pieces(lines) if piece)


def sections(text: str) -> Iterator[tuple[str, list[str]]]:
    """The lines under each heading, Markdown's (``# …``) or underlined ones; code in fences has no headings."""
    trail: dict[int, str] = {}
    body: list[str] = []
    lines = text.splitlines()
    before, fenced = "", False
    for line, after in itertools.zip_longest(lines, lines[1:], fillvalue=""):
        fenced ^= line.lstrip().startswith("```")
        level = 0 if fenced else heading_level(before, line, after)
        if level:
            yield TRAIL.join(trail.values()), body
            trail = {above: title for above, title in trail.items() if above < level}
            trail[level] = line.lstrip("# \t").rstrip()[:MAX_TITLE]
            body = []
        elif fenced or not is_rule(line):
            body.append(line)
        before = line
    yield TRAIL.join(trail.values()), body


def heading_level(before: str, line: str, after: str) -> int:
    """1 to 6 for a heading, 0 for any other line, judged by the lines around it."""
    marks = len(line) - len(line.lstrip("#"))
    if 1 <= marks <= 6 and line[marks:].strip("# \t") and line[marks].isspace():
        return marks
    underlined = is_rule(after) and not is_rule(line) and bool(line.strip())
    if underlined and (is_rule(before) or not before.strip()):
        return {"=": 1, "-": 2}.get(after.strip()[0], 3)
    return 0


def is_rule(line: str) -> bool:
    """Whether ``line`` is one mark drawn out, as under a heading."""
    line = line.strip()
    return len(line) >= 3 and line[0] in "=-~^\"'*+#.:_" and not line.strip(line[0])


def pieces(lines: list[str]) -> Iterator[str]:
    """``lines`` in pieces of at most ``PASSAGE_CHARS``, ended where a paragraph ends if it is long enough by then."""
    piece: list[str] = []
    size = 0
    for line in itertools.chain.from_iterable(map(parts, lines)):
        if size + len(line) > PASSAGE_CHARS or (size > PASSAGE_CHARS // 2 and not line.strip()):
            yield "\n".join(piece).strip()
            piece, size = [], 0
        piece.append(line)
        size += len(line)
    yield "\n".join(piece).strip()


def parts(line: str) -> Iterator[str]:
    """``line``, cut between words where it is longer than a passage may be."""
    start = 0
    while len(line) - start > PASSAGE_CHARS:
        end = line.rfind(" ", start, start + PASSAGE_CHARS) + 1 or start + PASSAGE_CHARS
        yield line[start:end]
        start = end
    yield line[start:]
