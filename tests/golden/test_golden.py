"""Every provider stream beside this is told to readers exactly as its second file says.

The files are the specification, and were checked by hand: what differs is a defect until a person says otherwise. See
``record.py`` for how they are written anew.
"""

import pytest
from golden.replay import PAST_LANGCHAIN, Trace, Way, told, traces

OF_OPENAI = [trace for trace in traces() if trace.style == "openai"]
OF_ONE_MODEL = [trace for trace in OF_OPENAI if trace.lanes == 1]


@pytest.mark.parametrize("trace", traces(), ids="/".join)
async def test_a_provider_stream_is_told_as_it_should_be(trace: Trace) -> None:
    assert (await told(trace)).decode().splitlines() == trace.told.read_text().splitlines()


@pytest.mark.parametrize("trace", OF_OPENAI, ids="/".join)
async def test_it_is_told_the_same_when_it_is_read_as_plain_dicts(trace: Trace) -> None:
    assert (await told(trace, "dicts")).decode().splitlines() == trace.told.read_text().splitlines()


@pytest.mark.parametrize("trace", OF_ONE_MODEL, ids="/".join)
@pytest.mark.parametrize("way", PAST_LANGCHAIN)
async def test_it_is_told_the_same_when_its_text_goes_past_langchain(trace: Trace, way: Way) -> None:
    assert (await told(trace, way)).decode().splitlines() == trace.told.read_text().splitlines()
