"""The benchmarks' scripts, imported as Python runs them."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TypeAlias

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
NAMES = sorted(one.stem for one in BENCHMARKS.glob("*.py"))

Script: TypeAlias = Callable[[str], ModuleType]


@pytest.fixture
def script() -> Iterator[Script]:
    """Imports one as Python runs it: the scripts find one another by the folder they are in, and by nothing else."""
    others = {name: sys.modules.pop(name) for name in NAMES if name in sys.modules}
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield importlib.import_module
    finally:
        sys.path.remove(str(BENCHMARKS))
        for name in NAMES:
            sys.modules.pop(name, None)
        sys.modules.update(others)


@pytest.fixture
def harness(script: Script) -> ModuleType:
    return script("harness")
