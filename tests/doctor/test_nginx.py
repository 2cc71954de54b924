"""The doctor before a real nginx, with each fault that a configuration can have, and with none.

All cases are server blocks of one nginx, before one server. They are looked at in a few portions, side by side, and
each is judged as if it were the only one. Every faulty one stands there a second time, with the lines that the doctor
names.
"""

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest
from nginx import proxies
from serving import Served, serving

from app.doctor.asking import Examination
from app.doctor.cures import Fault, cure
from app.doctor.measurement import Layer
from app.doctor.verdict import Finding, findings, notes

KEY = "a-key-that-is-long-enough"

SOUND = (
    "proxy_http_version 1.1;",
    "proxy_set_header Host $http_host;",
    "proxy_set_header Upgrade $http_upgrade;",
    "proxy_set_header Connection $http_connection;",
    "proxy_read_timeout 310s;",
)

HEALTHY = {
    "unbuffered": "proxy_buffering off;",
    "buffering, but for whom the server asks not to": "proxy_buffering on;",
    "buffering of what comes in chunks": "proxy_buffering on; proxy_ignore_headers X-Accel-Buffering;",
    "HTTP/1.0": "proxy_http_version 1.0;",
    "gzip for pages": "gzip on; gzip_proxied any; gzip_types text/css application/json;",
    "headers of its own": "add_header X-Frame-Options DENY;",
}

COMPRESSING = "gzip on; gzip_types text/event-stream;"

FAULTY = {
    "gzip": (COMPRESSING, [Fault.COMPRESSES]),
    "gzip and buffering": (f"{COMPRESSING} proxy_ignore_headers X-Accel-Buffering;", [Fault.COMPRESSES]),
    "short timeouts": ("proxy_read_timeout 1s;", [Fault.CUTS_SILENCE, Fault.CUTS_WEBSOCKET]),
    "no upgrade": ('proxy_set_header Upgrade "";', [Fault.NO_WEBSOCKET]),
    "ignored leaving": ("proxy_ignore_client_abort on;", [Fault.KEEPS_RUNS]),
    "no last event id": ('proxy_set_header Last-Event-ID "";', [Fault.DROPS_LAST_EVENT_ID]),
    "no key": ('proxy_set_header Authorization "";', [Fault.DROPS_KEY]),
    "another host": ("proxy_set_header Host millrace.internal;", [Fault.CHANGES_HOST]),
    "a host without its port": ("proxy_set_header Host $host;", [Fault.CHANGES_HOST]),
    "no run id": ("proxy_hide_header X-Run-Id;", [Fault.CHANGES_HEADERS]),
    "expires": ("expires 1d;", [Fault.CHANGES_HEADERS]),
}

OUTER = {"HTTP/1.0 to another nginx": ("proxy_http_version 1.0;", [Fault.BUFFERS])}
"""Before a sound nginx, which keeps ``X-Accel-Buffering`` to itself, and sends no chunks to who asks by HTTP/1.0."""

BARE = {"nothing but proxy_pass": [Fault.CHANGES_HOST, Fault.NO_WEBSOCKET]}

NO_SERVER = {
    "down": Fault.UNREACHABLE,
    "another server": Fault.NOT_MILLRACE,
    "nobody there": Fault.NOT_MILLRACE,
    "redirect": Fault.REDIRECTS,
}

PORTIONS = 4


def location(up: str, changes: str = "", sound: tuple[str, ...] = SOUND) -> str:
    """A proxy, sound but for these directives, which stand there instead of those of the same name."""
    own = [line for line in sound if not any(_name(line) == _name(one) for one in changes.split(";"))]
    return f"location / {{ proxy_pass {up}; {' '.join(own)} {changes} }}"


def _name(directive: str) -> list[str]:
    words = directive.split()
    return words[:2] if words[:1] == ["proxy_set_header"] else words[:1]


def cured(up: str, changes: str, faults: list[Fault], sound: tuple[str, ...] = SOUND) -> str:
    """The same with what the doctor names: whole locations beside it, lines in it."""
    headers = [name for name in ("Cache-Control", "X-Run-Id") if ("expires" in changes) == (name == "Cache-Control")]
    cures = [cure(fault, "nginx", up, headers) for fault in dict.fromkeys(faults)]
    lines = dict.fromkeys(line for one in cures if not one.startswith("location") for line in one.splitlines())
    kept = [
        f"{one};" for one in changes.split(";") if one.strip() and _name(one) not in [_name(line) for line in lines]
    ]
    beside = [one for one in cures if one.startswith("location")]
    return " ".join([location(up, " ".join([*kept, *lines]), sound), *beside])


@pytest.fixture(scope="module")
def keyed() -> Iterator[Served]:
    with serving(api_keys=f"{KEY}:ada", requests_per_minute=0, heartbeat_s=2) as one:
        yield one


@pytest.fixture(scope="module")
def looked(keyed: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, list[Layer]]]:
    """The server and the case, as they were seen, by the case's name."""
    up = keyed.url
    with nowhere() as closed, proxies(tmp_path_factory.mktemp("inner"), {"inner": location(up)}) as inner:
        servers = {
            **{name: location(up, changes) for name, changes in HEALTHY.items()},
            **{name: location(up, changes) for name, (changes, _) in FAULTY.items()},
            **{f"{name}, cured": cured(up, *case) for name, case in FAULTY.items()},
            **{name: location(inner["inner"], changes) for name, (changes, _) in OUTER.items()},
            **{f"{name}, cured": cured(inner["inner"], *case) for name, case in OUTER.items()},
            **{name: location(up, sound=()) for name in BARE},
            **{f"{name}, cured": cured(up, "", faults, ()) for name, faults in BARE.items()},
            "down": location(closed),
            "another server": "location / { return 200 hello; }",
            "nobody there": "location / { return 404; }",
            "redirect": "return 301 https://millrace.example$request_uri;",
        }
        with proxies(tmp_path_factory.mktemp("nginx"), servers) as urls, ThreadPoolExecutor(PORTIONS) as pool:
            portions = [dict(list(urls.items())[at::PORTIONS]) for at in range(PORTIONS)]
            seen = list(pool.map(lambda portion: look(up, portion), portions))
        yield {name: layers for portion in seen for name, layers in portion.items()}


@contextmanager
def nowhere() -> Iterator[str]:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        yield f"http://127.0.0.1:{nobody.getsockname()[1]}"


def look(url: str, urls: dict[str, str]) -> dict[str, list[Layer]]:
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {KEY}"}, timeout=10) as server:
        examination = Examination(server, lambda _: None)
        nearest, *layers = examination.layers([url, *urls.values()])
    assert examination.notes == []
    return {name: [nearest, layer] for name, layer in zip(urls, layers, strict=True)}


def said(looked: dict[str, list[Layer]], case: str) -> list[Finding]:
    assert notes(looked[case]) == []
    return findings(looked[case])


@pytest.mark.parametrize("case", HEALTHY)
def test_of_a_sound_configuration_nothing_is_said(looked: dict[str, list[Layer]], case: str) -> None:
    assert said(looked, case) == []


@pytest.mark.parametrize("case", [*FAULTY, *OUTER])
def test_the_fault_is_named_and_no_other(looked: dict[str, list[Layer]], case: str) -> None:
    assert [one.fault for one in said(looked, case)] == (FAULTY | OUTER)[case][1]


def test_of_a_bare_proxy_all_that_it_lacks_is_named(looked: dict[str, list[Layer]]) -> None:
    for case, faults in BARE.items():
        assert {one.fault for one in said(looked, case)} == set(faults)


@pytest.mark.parametrize("case", [*FAULTY, *OUTER, *BARE])
def test_with_the_lines_that_were_named_nothing_is_left_to_say(looked: dict[str, list[Layer]], case: str) -> None:
    assert said(looked, f"{case}, cured") == []


@pytest.mark.parametrize("case", NO_SERVER)
def test_what_does_not_lead_to_the_server_is_told(looked: dict[str, list[Layer]], case: str) -> None:
    assert [one.fault for one in said(looked, case)] == [NO_SERVER[case]]


def test_what_held_the_stream_is_told_with_what_arrived(looked: dict[str, list[Layer]]) -> None:
    (one,) = said(looked, "HTTP/1.0 to another nginx")
    assert one.says.startswith("nginx at :")
    assert " buffers: 6" in one.says
    assert " bursts, half of them more than 0." in one.says
    assert one.cure == "proxy_buffering off;"
