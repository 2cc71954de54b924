"""The page's words for numbers, in Node."""

from typing import Any

import pytest
from node import javascript


def said(expression: str) -> Any:
    return javascript(f'import {{ span }} from "./words.js";\ntold({expression});')


@pytest.mark.parametrize(
    ("ms", "words"),
    [
        ("null", "–"),
        ("0", "0 ms"),
        ("999.4", "999 ms"),
        ("999.6", "1 s"),
        ("59940", "59.9 s"),
        ("59960", "1 min 0 s"),
        ("119600", "2 min 0 s"),
        ("3599400", "59 min 59 s"),
        ("3599600", "1 h 0 min"),
        ("27005000", "7 h 30 min"),
        ("360000000", "100 h 0 min"),
    ],
)
def test_a_span_is_told_in_the_units_of_its_size_and_never_in_sixty_of_one(ms: str, words: str) -> None:
    assert said(f"span({ms})") == words
