"""Node: runs the page's modules that need no browser, and brings the tests' npm packages."""

import fcntl
import json
import subprocess
from pathlib import Path
from typing import Any

from machine import missing, program

WEB = Path(__file__).parents[1] / "app" / "web"

PACKAGES = Path(__file__).parent / "clients"
LOCK = PACKAGES / "package-lock.json"
INSTALLED = PACKAGES / "node_modules" / ".package-lock.json"
OLDEST = 18


def node() -> str:
    """The path of Node."""
    path = program("node", package="nodejs")
    version = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if int(version.removeprefix("v").partition(".")[0]) < OLDEST:
        missing(f"Node {version} on this machine: install {OLDEST} or newer (the Debian package 'nodejs')")
    return path


def packages() -> Path:
    """The folder of the pinned npm packages; they are fetched when the lock is newer than what is there."""
    npm = program("npm", package="npm")
    with LOCK.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the suite's processes share the folder
        if not INSTALLED.exists() or INSTALLED.stat().st_mtime < LOCK.stat().st_mtime:
            got = subprocess.run(
                [npm, "ci", "--ignore-scripts"], cwd=PACKAGES, capture_output=True, text=True, check=False
            )
            if got.returncode:
                missing(f"npm could not fetch the tests' packages: {got.stderr[-500:]}")
    return PACKAGES / "node_modules"


def javascript(source: str, given: Any = None) -> Any:
    """Run an ES module that stands as if in ``app/web``: it has ``given``, and what it hands to ``told`` comes back."""
    whole = source.replace('from "./', f'from "{WEB.as_uri()}/')
    imports = [line for line in whole.splitlines() if line.startswith("import ")]
    rest = [line for line in whole.splitlines() if not line.startswith("import ")]
    module = "\n".join(
        (
            *imports,
            'import { readFileSync } from "node:fs";',
            'const given = JSON.parse(readFileSync(0, "utf-8"));',
            "const told = (value) => console.log(JSON.stringify(value));",
            *rest,
        )
    )
    done = subprocess.run(
        [node(), "--input-type=module", "--eval", module],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)
