"""The page's libraries are what their makers published."""

import re
from hashlib import sha256
from pathlib import Path

VENDOR = Path(__file__).parents[2] / "app" / "web" / "vendor"


def test_each_library_is_the_file_whose_digest_is_written_down_and_has_its_licence_beside_it() -> None:
    listed = dict(
        re.findall(r"^\| (\S+\.js) \|.*\| ([0-9a-f]{64}) \|$", (VENDOR / "README.md").read_text("utf-8"), re.MULTILINE)
    )
    assert listed == {path.name: sha256(path.read_bytes()).hexdigest() for path in VENDOR.glob("*.js")}
    for name in listed:
        assert (VENDOR / name).with_suffix(".LICENSE.txt").exists()
