import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.simulator.tokens import count, pieces


@given(st.text())
def test_the_pieces_joined_are_the_text(text: str) -> None:
    assert "".join(pieces(text)) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("Hello, world!", ["Hello", ",", " world", "!"]),
        ("internationalisation", ["intern", "ationa", "lisati", "on"]),
        ("a  b", ["a", " ", " b"]),
        ("if x:\n    return 1", ["if", " x", ":", "\n", "   ", " return", " 1"]),
        ("one\n\ntwo", ["one", "\n\n", "two"]),
        ("snake_case", ["snake", "_", "case"]),
        ("日本 🌾🌾", ["日", "本", " ", "🌾", "🌾"]),
        ("déjà vu", ["déjà", " vu"]),
    ],
)
def test_words_keep_their_space_and_long_ones_fall_into_pieces(text: str, expected: list[str]) -> None:
    assert pieces(text) == expected
    assert count(text) == len(expected)
