"""What mends each fault: for nginx the very lines, for others a sentence. ``docs/proxies.md`` says why, and more."""

from collections.abc import Sequence
from enum import StrEnum

NGINX = frozenset(("nginx", "openresty", "angie", "tengine"))
"""What ``Server`` calls those that read nginx's configuration."""

ELSEWHERE = "docs/proxies.md has the lines for Caddy, HAProxy, Traefik, ALB and Cloudflare."


class Fault(StrEnum):
    """What can be wrong with a layer."""

    UNREACHABLE = "unreachable"
    NOT_MILLRACE = "not_millrace"
    REDIRECTS = "redirects"
    REFUSES = "refuses"
    NEEDS_KEY = "needs_key"
    DROPS_KEY = "drops_key"
    CHANGES_HOST = "changes_host"
    BUFFERS = "buffers"
    COMPRESSES = "compresses"
    BREAKS_OFF = "breaks_off"
    CUTS_SILENCE = "cuts_silence"
    HOLDS_HEARTBEATS = "holds_heartbeats"
    CHANGES_HEADERS = "changes_headers"
    DROPS_LAST_EVENT_ID = "drops_last_event_id"
    KEEPS_RUNS = "keeps_runs"
    NO_WEBSOCKET = "no_websocket"
    CUTS_WEBSOCKET = "cuts_websocket"
    SERVER_LATE = "server_late"


_LOCATION = """\
location / {{
    proxy_pass {behind};
    proxy_set_header Host $http_host;
}}"""

_SOCKET = """\
location = /ws {{
    proxy_pass {behind};
    proxy_http_version 1.1;
    proxy_set_header Host $http_host;
    proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
    proxy_set_header X-Forwarded-Proto $scheme;
    proxy_set_header Upgrade $http_upgrade;
    proxy_set_header Connection "upgrade";
}}"""

_NGINX = {
    Fault.UNREACHABLE: "proxy_pass {behind};",
    Fault.NOT_MILLRACE: _LOCATION,
    Fault.DROPS_KEY: "proxy_set_header Authorization $http_authorization;",
    Fault.CHANGES_HOST: "proxy_set_header Host $http_host;",
    Fault.BUFFERS: "proxy_buffering off;",
    Fault.COMPRESSES: "gzip off;",
    Fault.BREAKS_OFF: "proxy_read_timeout 310s;",
    Fault.CUTS_SILENCE: "proxy_read_timeout 310s;",
    Fault.HOLDS_HEARTBEATS: "proxy_buffering off;",
    Fault.DROPS_LAST_EVENT_ID: "proxy_set_header Last-Event-ID $http_last_event_id;",
    Fault.KEEPS_RUNS: "proxy_ignore_client_abort off;",
    Fault.NO_WEBSOCKET: _SOCKET,
    Fault.CUTS_WEBSOCKET: "proxy_read_timeout 310s;",
}
"""By fault; ``{behind}`` is the address of the nearer layer."""

_WORDS = {
    Fault.UNREACHABLE: "Is it running, and is the address right? `millrace serve` starts a server.",
    Fault.NOT_MILLRACE: "Have it pass every path on to {behind}, as it is.",
    Fault.REDIRECTS: "Give the doctor the address it redirects to.",
    Fault.REFUSES: "docs/access.md says who may use a server: MILLRACE_API_KEYS there, MILLRACE_API_KEY here.",
    Fault.NEEDS_KEY: "Put the key into the environment here, as MILLRACE_API_KEY.",
    Fault.DROPS_KEY: "Have it pass the header Authorization on.",
    Fault.CHANGES_HOST: "Have it pass the Host on as the browser sent it, with its port.",
    Fault.BUFFERS: "Turn the buffering of responses off.",
    Fault.COMPRESSES: "Leave text/event-stream out of what is compressed.",
    Fault.BREAKS_OFF: "Raise its time limits for responses over 310 s.",
    Fault.CUTS_SILENCE: "Raise its time limit for a silent response over 310 s.",
    Fault.HOLDS_HEARTBEATS: "Turn the buffering of responses off.",
    Fault.CHANGES_HEADERS: "Have it pass the response's headers on as they are.",
    Fault.DROPS_LAST_EVENT_ID: "Have it pass the header Last-Event-ID on.",
    Fault.KEEPS_RUNS: "Have it close its connection to the server when its client leaves.",
    Fault.NO_WEBSOCKET: "Have it pass the headers Upgrade and Connection on, over HTTP/1.1.",
    Fault.CUTS_WEBSOCKET: "Raise its time limit for a silent WebSocket over 310 s.",
    Fault.SERVER_LATE: (
        "If this is the server itself: its machine is overloaded, or a node of a graph blocks its event loop. "
        "If it is a proxy: turn the buffering of responses off."
    ),
}

_NO_PROXYS = frozenset((Fault.UNREACHABLE, Fault.REDIRECTS, Fault.REFUSES, Fault.NEEDS_KEY))
"""Where no line of a proxy's configuration helps, as far as is known."""


def is_nginx(product: str) -> bool:
    """Whether nginx's lines are the cure there."""
    return product.lower() in NGINX


def cure(fault: Fault, product: str, behind: str, headers: Sequence[str] = ()) -> str:
    """The lines, or a sentence. ``behind`` is the nearer layer's address, ``headers`` those that did not arrive."""
    if is_nginx(product) and fault is Fault.CHANGES_HEADERS:
        expires = ["expires off;"] if "Cache-Control" in headers else []
        return "\n".join([*expires, *(f"proxy_pass_header {name};" for name in headers)])
    if is_nginx(product) and fault in _NGINX:
        return _NGINX[fault].format(behind=behind)
    words = _WORDS[fault].format(behind=behind)
    return words if fault in _NO_PROXYS else f"{words} {ELSEWHERE}"
