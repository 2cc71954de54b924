"""Environments of their own for peers that cannot share one with the others: made on demand, pinned by hashes.

``peers/NAME.lock`` says what is in one; it is made anew when that file changes. They stand in ``.venv-peers``.
"""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PLACE = HERE.parent / ".venv-peers"


def python(name: str) -> str:
    """The interpreter of a peer's environment, which is made first where there is none."""
    lock, folder = HERE / "peers" / f"{name}.lock", PLACE / name
    interpreter, ready = folder / "bin" / "python", folder / "ready"
    if ready.exists() and ready.read_bytes() == lock.read_bytes():
        return str(interpreter)
    print(f"An environment for {name} in {folder.relative_to(HERE.parent)} (once, a minute or two) …", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    install = [str(interpreter), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes"]
    if subprocess.run([*install, "-r", str(lock)], check=False).returncode:
        raise SystemExit(f"{name} could not be installed from {lock.relative_to(HERE.parent)}; see above")
    ready.write_bytes(lock.read_bytes())
    return str(interpreter)


def versions(name: str, *packages: str) -> str:
    """``langgraph-api 0.16.7, …``, as the lock has them."""
    lines = (HERE / "peers" / f"{name}.lock").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split(" ")[0].split("==") for line in lines if "==" in line and not line.startswith((" ", "#")))
    return ", ".join(f"{one} {pinned[one]}" for one in packages)
