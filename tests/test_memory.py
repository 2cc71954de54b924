"""How the process holds memory: what malloc's own account and Python's say of it."""

import gc
import os
import platform
import subprocess
import sys

import pytest
from serving import serving

from app.memory import LARGE, SELDOM, frugal
from app.simulator.server import Simulator

COUNTED = """
import ctypes

class Account(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
        ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")]

mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = Account

def own(size):
    "Of a hundred blocks of that size, whether most are the system's own, and how many stay when they are freed."
    before = mallinfo().hblks
    blocks = [bytes(size) for _ in range(100)]
    held = mallinfo().hblks - before
    blocks.clear()
    return held > 50, mallinfo().hblks - before
"""
"""mallinfo2(3): ``hblks`` is the number of blocks that are the system's own."""

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another malloc, which is left as it is")


def said(program: str, **environment: str) -> str:
    """What a fresh interpreter writes: malloc's thresholds are its process's, for good."""
    done = subprocess.run(
        [sys.executable, "-c", COUNTED + program],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@glibc
def test_large_blocks_are_the_systems_own_and_go_back_when_they_are_freed() -> None:
    program = f"""
from app.memory import frugal
own({8 * LARGE})  # once such were freed, malloc by itself would keep all that are smaller
with frugal():
    print(own({LARGE}), own({LARGE // 2}))
"""
    assert said(program) == "(True, 0) (False, 0)"


@glibc
def test_without_it_they_are_kept() -> None:
    assert said(f"print(own({LARGE}))") == "(False, 0)"


@glibc
@pytest.mark.parametrize(
    "theirs",
    [{"MALLOC_MMAP_THRESHOLD_": "1000000"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1000000"}],
    ids=lambda theirs: next(iter(theirs)),
)
def test_an_operators_own_thresholds_stay(theirs: dict[str, str]) -> None:
    program = f"""
from app.memory import frugal
with frugal():
    print(own({LARGE}))
"""
    assert said(program, **theirs) == "(False, 0)"


def test_garbage_is_collected_seldom_while_the_server_runs_and_as_before_afterwards() -> None:
    before, frozen = gc.get_threshold(), gc.get_freeze_count()
    with frugal():
        assert gc.get_threshold() == SELDOM
        assert gc.get_freeze_count() > frozen
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0


def test_a_server_is_frugal() -> None:
    before = gc.get_threshold()
    with Simulator() as simulator, serving({}, openai_base_url=simulator.base_url):
        assert gc.get_threshold() == SELDOM
    assert gc.get_threshold() == before
