"""Every provider stream beside this is told to readers exactly as its second file says.

The files are the specification, and were checked by hand: what differs is a defect until a person says otherwise. See
``record.py`` for how they are written anew.
"""

import pytest
from golden.replay import Trace, told, traces


@pytest.mark.parametrize("trace", traces(), ids="/".join)
async def test_a_provider_stream_is_told_as_it_should_be(trace: Trace) -> None:
    assert (await told(trace)).decode().splitlines() == trace.told.read_text().splitlines()
