"""Writes anew what readers are told of the streams beside it: ``.venv/bin/python tests/golden/record.py [NAME …]``.

A name is ``STYLE/SHAPE``, as in ``openai/index_gaps``; without one, all are written. What is written is what is told
now, right or wrong: read the diff before you keep it. A wire file is never written; a new one is all a new trace needs.
"""

import asyncio
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from golden.replay import Trace, told, traces  # noqa: E402

if __name__ == "__main__":
    for trace in [Trace(*name.split("/")) for name in sys.argv[1:]] or traces():
        trace.told.write_bytes(asyncio.run(told(trace)))
        print(trace.style, trace.shape)
