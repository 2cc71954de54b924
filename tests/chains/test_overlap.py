"""The joint of a continued answer: what is said twice goes, and nothing else."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chains.overlap import CHANCE, Overlap


def joined(said: str, *pieces: str, least: int = 1) -> str:
    """What a reader has in the end."""
    overlap = Overlap(said, least=least)
    return said + "".join([overlap.feed(piece) for piece in pieces]) + overlap.close()


@pytest.mark.parametrize(
    ("said", "new", "whole"),
    [
        ("The mill turns", " at night.", "The mill turns at night."),
        ("The mill turns", "turns at night.", "The mill turns at night."),
        ("The mill turns", "mill turns at night.", "The mill turns at night."),
        ("The mill turns", "The mill turns at night.", "The mill turns at night."),
        ("The mill tur", "turns at night.", "The mill turns at night."),
        ("The mill tur", "ns at night.", "The mill turns at night."),
        ("One.\n\nTwo.", "Two.\n\nThree.", "One.\n\nTwo.\n\nThree."),
        ("One.\n\n", "\n\nTwo.", "One.\n\nTwo."),
        ("One.\n\n", "Two.", "One.\n\nTwo."),
        ("One.\n\n", " Two.", "One.\n\nTwo."),
        ("One.\n\n", "\nTwo.", "One.\n\nTwo."),
        ("One.\n", "\n\nTwo.", "One.\n\nTwo."),
        ("One.\n\n", "One. Two.", "One.\n\nTwo."),
        ("One.\n\n", "One.\n\nTwo.", "One.\n\nTwo."),
        ("One.\n\n", "  - an item", "One.\n\n  - an item"),
        ("One ", " two", "One two"),
        ("One ", "two", "One two"),
        ("One ", "\n\nTwo", "One \n\nTwo"),
        ("if x:\n    ", "    return", "if x:\n    return"),
        ("f(g(x)", ")", "f(g(x))"),
        ("the thre", "e of them", "the three of them"),
        ("磨坊在转动", "转动着", "磨坊在转动着"),
        ("All of it", "All of it", "All of it"),
        ("The mill", "The millers", "The millers"),
        ("The mill turns", "The miller", "The mill turnsThe miller"),
        ("Done.", "", "Done."),
        ("Done.", "  ", "Done.  "),
        ("Done.\n\n", "\n\n", "Done.\n\n"),
    ],
)
def test_an_answer_goes_on_with_what_is_new(said: str, new: str, whole: str) -> None:
    assert joined(said, new) == whole
    assert joined(said, *new) == whole


def test_short_repetitions_are_text_where_the_provider_goes_on_by_itself() -> None:
    assert joined("1, 1", "1, 1", least=16) == "1, 11, 1"
    assert joined("Row, row", ", row", least=16) == "Row, row, row"
    assert joined("turns without haste,", " turns without haste, and", least=16) == "turns without haste, and"


def test_white_space_that_was_not_sent_comes_back_once() -> None:
    assert joined("One.\n\n", "\n\nTwo.", least=16) == "One.\n\nTwo."
    assert joined("One.\n", "\n\nTwo.", least=16) == "One.\n\nTwo."


def test_nothing_is_held_back_once_it_cannot_be_a_repetition() -> None:
    overlap = Overlap("The mill turns")
    assert overlap.feed("The") == ""
    assert overlap.feed(" mill") == ""
    assert overlap.feed(" stands") == "The mill stands"
    assert overlap.feed(" The") == " The"


WORDS = st.text(alphabet="ab \n.", max_size=14)


def cuts(text: str, at: list[int]) -> list[str]:
    edges = [0, *sorted({one % (len(text) + 1) for one in at}), len(text)]
    return [text[a:b] for a, b in pairwise(edges)]


def repetition(said: str, new: str, least: int) -> int:
    """The longest beginning of ``new`` that repeats the end of ``said``, by trying each length."""

    def counts(size: int) -> bool:
        again, before = new[:size], said[: len(said) - size]
        in_word = before[-1:].isalnum() and again[0].isalnum()
        chance = size < least or (in_word and size < CHANCE) or not any(one.isalnum() for one in again)
        return said.endswith(again) and not chance

    return max((size for size in range(1, min(len(said), len(new)) + 1) if counts(size)), default=0)


@given(WORDS, WORDS, st.lists(st.integers(0, 50), max_size=6), st.sampled_from([1, 3, 16]))
def test_how_the_text_comes_in_pieces_makes_no_difference(said: str, new: str, at: list[int], least: int) -> None:
    assert joined(said, *cuts(new, at), least=least) == joined(said, new, least=least)


@given(WORDS, WORDS, st.sampled_from([1, 3, 16]))
def test_exactly_the_longest_repetition_goes_and_white_space_at_the_joint(said: str, new: str, least: int) -> None:
    body, rest = said.rstrip(), new.lstrip()
    expected = rest[repetition(body, rest, least) :]
    if said == body and expected == rest:
        assert joined(said, new, least=least) == said + new
    elif said == body:
        assert joined(said, new, least=least) == said + expected
    else:
        assert joined(said, new, least=least).startswith(said)
        assert joined(said, new, least=least)[len(said) :].strip() == expected.strip()


@given(st.text(max_size=60), st.integers(0, 60), st.text(max_size=30), st.lists(st.integers(0, 100), max_size=8))
def test_a_suffix_said_again_is_trimmed_whatever_it_holds(said: str, size: int, more: str, at: list[int]) -> None:
    said, more = f"¶{said.replace('¶', '')}.", f"¶{more}"
    again = said[-size:] if 0 < size <= len(said) else said
    counts = repetition(said, again, 1) == len(again)
    new = f"{again}{more}" if counts else more
    assert joined(said, *cuts(new, at)) == f"{said}{more}"


@given(WORDS, WORDS, st.sampled_from([1, 3, 16]))
def test_what_is_held_back_could_still_be_a_repetition(said: str, new: str, least: int) -> None:
    overlap, body = Overlap(said, least=least), said.rstrip()
    passed = ""
    for at, character in enumerate(new, 1):
        passed += overlap.feed(character)
        came = new[:at].lstrip()
        blank = not came or (said != body and not came[repetition(body, came, least) :].strip())
        grows = any(
            body.startswith(came, start) and repetition(body, body[start:], least) == len(body) - start
            for start in range(len(body) - len(came))
        )
        if not (blank or grows):
            assert said + passed == joined(said, new[:at], least=least)
