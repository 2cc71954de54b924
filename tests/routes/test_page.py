"""The page's files: what they are sent with, and that nothing of them comes from elsewhere."""

import re
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest
from serving import Served

WEB = Path(__file__).parents[2] / "app" / "web"
FILES = sorted(path.relative_to(WEB).as_posix() for path in WEB.rglob("*") if path.suffix in (".css", ".js", ".svg"))


class Addresses(HTMLParser):
    """Every address that a page names, and whatever of it would be code."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.inline: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.found += [value for name in ("src", "href") if (value := named.get(name))]
        self.inline += [name for name in named if name == "style" or name.startswith("on")]
        if tag == "style" or (tag == "script" and "src" not in named):
            self.inline.append(tag)


async def test_the_page_may_run_its_own_scripts_and_speak_to_its_own_server_alone(client: httpx.AsyncClient) -> None:
    answer = await client.get("/")
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert {policy["script-src"], policy["style-src"], policy["connect-src"]} == {"'self'"}
    assert policy["frame-ancestors"] == "'none'"
    assert answer.headers["x-content-type-options"] == "nosniff"


async def test_it_names_only_files_of_its_own_and_they_are_there(client: httpx.AsyncClient) -> None:
    page = Addresses()
    page.feed((await client.get("/")).text)
    assert page.inline == []
    links = [address for address in page.found if not address.startswith("#")]
    assert links
    for address in links:
        assert (await client.get(f"/{address}")).status_code == 200, address


@pytest.mark.parametrize("name", FILES)
async def test_a_file_is_what_lies_in_the_folder(client: httpx.AsyncClient, name: str) -> None:
    answer = await client.get(f"/web/{name}")
    assert answer.content == (WEB / name).read_bytes()
    kind = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}[name.rpartition(".")[2]]
    assert answer.headers["content-type"].startswith(kind)


@pytest.mark.parametrize("name", [name for name in FILES if not name.startswith("vendor/")])
def test_a_file_of_ours_names_no_other_server(name: str) -> None:
    text = (WEB / name).read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
    assert not re.findall(r"https?://\w", text)


async def test_a_browser_that_has_a_file_is_not_sent_it_again(client: httpx.AsyncClient) -> None:
    first = await client.get("/")
    again = await client.get("/", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert (await client.get("/", headers={"If-None-Match": '"another"'})).status_code == 200


async def test_only_the_pages_files_are_served(client: httpx.AsyncClient, served: Served) -> None:
    for path in (
        "/web/",
        "/web/no-such.js",
        "/web/vendor/README.md",
        "/web/..%2f..%2fapp%2fmain.py",
        "/web/%2e%2e/main.py",
    ):
        answer = await client.get(path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found"), path


async def test_a_head_has_no_body(client: httpx.AsyncClient) -> None:
    answer = await client.head("/")
    assert (answer.status_code, answer.content) == (200, b"")
