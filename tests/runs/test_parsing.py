"""Arguments that are no JSON cost what their length is, and no more; sound ones are read as ever."""

import json

import pytest
from langchain_core.messages import ai
from langchain_core.messages.ai import add_ai_message_chunks
from langchain_core.utils.json import parse_partial_json
from scripted import piece, say

from app.runs.parsing import SHORT, Bounded, bound_parsing

ROWS = json.dumps({"rows": [{"number": at, "word": 'a " ü'} for at in range(20_000)]})
BROKEN = f"{ROWS[:-1]},}}"

parse = Bounded(parse_partial_json)


@pytest.mark.parametrize(
    "text", ['{"a": 1', '{"a": "b', '{"a": 1,}', '{"a": [1, {"b": 2', "{", '{"a" 1}', '{"a":"x\ny"}']
)
def test_short_texts_are_read_as_langchain_reads_them(text: str) -> None:
    def read(by: object) -> object:
        try:
            return by(text)  # type: ignore[operator]  # a parser
        except ValueError as error:
            return type(error)

    assert read(parse) == read(parse_partial_json)


def test_long_texts_that_are_json_are_read_whole_also_with_raw_line_breaks() -> None:
    assert parse(ROWS) == json.loads(ROWS)
    assert parse('{"a": "' + SHORT * "x\n" + '"}') == {"a": SHORT * "x\n"}


def test_of_a_long_text_that_was_cut_there_is_what_there_was() -> None:
    read = parse(ROWS[: len(ROWS) // 2])
    assert read["rows"][:9000] == json.loads(ROWS)["rows"][:9000]


def test_a_long_text_that_is_broken_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="trailing comma"):
        parse(BROKEN)  # LangChain's own takes minutes


def test_the_sum_of_a_streams_chunks_goes_by_it() -> None:
    bound_parsing()
    bound_parsing()
    assert isinstance(vars(ai)["parse_partial_json"], Bounded)
    chunks = [say("", piece("save", "", "c1", 0))]
    chunks += [say("", piece(None, BROKEN[at : at + 1000], None, 0)) for at in range(0, len(BROKEN), 1000)]
    whole = add_ai_message_chunks(chunks[0], *chunks[1:])
    assert not whole.tool_calls
    assert whole.invalid_tool_calls[0]["args"] == BROKEN
