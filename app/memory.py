"""How the process holds memory: how seldom Python collects garbage, and which blocks go back to the system at once.

Both concern the whole process, and are set here alone. What memory does so is measured by ``benchmarks/soak.py``.
"""

import ctypes
import gc
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

SELDOM = (10_000, 10, 20)
"""After how many new objects the young are collected, and after how many of these collections the older."""

LARGE = 64 * 1024
"""From how many bytes on a block is the system's own, and goes back to it when it is freed."""

_M_MMAP_THRESHOLD = -3
"""As ``malloc.h`` has it."""


@contextmanager
def frugal() -> Iterator[None]:
    """Hold what is needed, for as long as the context lasts; of malloc's ways for as long as the process does."""
    _part_with_large_blocks()
    with _seldom_collecting():
        yield


@contextmanager
def _seldom_collecting() -> Iterator[None]:
    """Have Python look for cycles among its objects seldom, and never again among those that are there for good.

    A full collection walks every object there is and stops the server meanwhile: 120 to 350 ms idle, 1.6 s in every 5 s
    with 500 live runs (measured). What a run leaves behind is freed by its reference counts, or by the collections of
    the young, which are cheap.
    """
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*SELDOM)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


def _part_with_large_blocks() -> None:
    """Have glibc's malloc keep no block of ``LARGE`` bytes or more. Other allocators are left as they are.

    A synchronous node reads its provider's answer by 64 KiB: httpcore asks the socket for as much, gets a few hundred
    bytes, and gives the rest back, so each read leaves a hole with something small behind it. glibc lets such blocks
    grow to 32 MiB before it asks the system for one, and has as many heaps as eight times the cores: 15,000 runs of
    such a node left 25 MB of holes, with this 4 (measured). As blocks of their own they are gone when they are
    freed, for one page fault each.

    Who has set the threshold in the environment knows better. See mallopt(3).
    """
    told = "MALLOC_MMAP_THRESHOLD_" in os.environ or "glibc.malloc.mmap_threshold" in os.environ.get(
        "GLIBC_TUNABLES", ""
    )
    if platform.libc_ver()[0] == "glibc" and not told:
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, LARGE)
