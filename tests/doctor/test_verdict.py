"""What is said of layers, from measurements that are made up."""

from collections.abc import Sequence

import pytest
from measured import HEADERS, all_at_the_end, each_second, events, layer, proxy, stream

from app.doctor.cures import Fault, cure
from app.doctor.measurement import Failure, Layer, Silence, Socket
from app.doctor.verdict import findings, notes, product


def faults(*layers: Layer) -> list[tuple[int, Fault]]:
    return [(one.layer, one.fault) for one in findings(layers)]


def only(*layers: Layer) -> tuple[str, str]:
    (one,) = findings(layers)
    return one.says, one.cure


def test_of_layers_in_which_nothing_is_wrong_nothing_is_said() -> None:
    assert findings([layer(), proxy(), proxy()]) == []
    assert notes([layer(), proxy()]) == []


def test_what_was_not_asked_is_no_fault() -> None:
    bare = [layer(left_s=None, silence=None, socket=None, resumed=None), proxy(left_s=None, silence=None)]
    assert findings(bare) == []


def test_a_proxy_that_buffers_is_named_with_what_arrived_and_the_line() -> None:
    slow = stream(all_at_the_end)
    says, lines = only(layer(), proxy(stream=slow, again=slow))
    assert says == "nginx at :8080 buffers: 40 events arrived in 1 burst, half of them more than 1.0 s late"
    assert lines == "proxy_buffering off;"


def test_one_that_is_late_once_and_not_again_is_not() -> None:
    assert findings([layer(), proxy(stream=stream(each_second), again=stream())]) == []


def test_a_fault_is_told_of_the_nearest_layer_that_shows_it() -> None:
    slow = stream(each_second)
    held = {"stream": slow, "again": slow}
    assert faults(layer(), proxy(**held), proxy(**held)) == [(1, Fault.BUFFERS)]
    assert faults(layer(), proxy(), proxy(**held)) == [(2, Fault.BUFFERS)]


def test_a_server_that_is_late_itself_is_not_told_to_change_its_proxy() -> None:
    slow = stream(each_second)
    (one,) = findings([layer(stream=slow, again=slow)])
    assert (one.fault, "event loop" in one.cure) == (Fault.SERVER_LATE, True)
    assert one.says.startswith("the server at :8000 is late: ")


def test_a_proxy_that_was_given_as_the_server_is_judged_like_any_other() -> None:
    slow = stream(each_second)
    assert faults(proxy(stream=slow, again=slow)) == [(0, Fault.BUFFERS)]


def test_compression_that_holds_events_is_one_fault() -> None:
    packed = stream(all_at_the_end, headers=HEADERS | {"content-encoding": "gzip"})
    says, lines = only(layer(), proxy(stream=packed, again=stream()))
    assert says.startswith("nginx at :8080 compresses the stream (gzip), which its no-transform forbids; 40 events")
    assert lines == "gzip off;"


def test_compression_that_holds_nothing_is_told_too() -> None:
    says, _ = only(layer(), proxy(stream=stream(headers=HEADERS | {"content-encoding": "br"})))
    assert says == "nginx at :8080 compresses the stream (br), which its no-transform forbids"


def test_what_is_held_without_compression_too_is_two_faults() -> None:
    packed = stream(all_at_the_end, headers=HEADERS | {"content-encoding": "gzip"})
    assert faults(layer(), proxy(stream=packed, again=stream(all_at_the_end))) == [
        (1, Fault.COMPRESSES),
        (1, Fault.BUFFERS),
    ]


def test_a_proxy_that_holds_events_holds_heartbeats_and_is_told_once() -> None:
    slow = stream(all_at_the_end)
    assert faults(layer(), proxy(stream=slow, again=slow, silence=Silence(0))) == [(1, Fault.BUFFERS)]
    says, lines = only(layer(), proxy(silence=Silence(0)))
    assert says == "nginx at :8080 holds heartbeats back: of 2 in a silent stream none arrived"
    assert lines == "proxy_buffering off;"


def test_a_stream_that_is_cut_in_silence() -> None:
    says, lines = only(layer(), proxy(silence=Silence(0, cut_after_s=2.02)))
    assert says == "nginx at :8080 cuts a stream after 2.0 s of silence, before the server's next heartbeat"
    assert lines == "proxy_read_timeout 310s;"


def test_a_stream_that_is_broken_off_twice() -> None:
    broken = stream(events=events(all_at_the_end)[:3], complete=False, broken_after_s=1.0)
    assert faults(layer(), proxy(stream=broken, again=broken)) == [(1, Fault.BREAKS_OFF)]
    assert faults(layer(), proxy(stream=broken, again=stream())) == []


def test_a_stream_of_which_nothing_comes() -> None:
    nothing = stream(headers_s=None, headers={}, events=[], complete=False, unanswered_s=20.0)
    says, lines = only(layer(), proxy(stream=nothing, again=nothing))
    assert says == "nginx at :8080 buffers: after 0 events nothing arrived for 20 s"
    assert lines == "proxy_buffering off;"


@pytest.mark.parametrize("title", ["Cache-Control", "X-Run-Id", "Content-Location"])
def test_a_header_that_is_lost(title: str) -> None:
    lost = stream(headers={name: value for name, value in HEADERS.items() if name != title.lower()})
    says, lines = only(layer(), proxy(stream=lost))
    assert says == f"nginx at :8080 changes the headers of a stream: no {title}"
    assert f"proxy_pass_header {title};" in lines


def test_a_header_that_is_changed_is_told_of_who_changed_it() -> None:
    changed = stream(headers=HEADERS | {"cache-control": "max-age=60"})
    says, lines = only(layer(), proxy(stream=changed), proxy(stream=changed))
    assert says.endswith("Cache-Control is “max-age=60”")
    assert lines.splitlines()[0] == "expires off;"
    also = stream(headers={"cache-control": "max-age=60"})
    assert len(findings([layer(), proxy(stream=changed), proxy(stream=also)])) == 2


def test_what_a_proxy_adds_to_cache_control_is_its_own_business() -> None:
    assert (
        findings([layer(), proxy(stream=stream(headers=HEADERS | {"cache-control": "No-Transform,no-cache, private"}))])
        == []
    )


def test_last_event_id_that_does_not_arrive() -> None:
    says, lines = only(layer(), proxy(resumed=(41, 1)))
    assert says == "nginx at :8080 drops Last-Event-ID: asked for what follows event 41, the stream began at event 1"
    assert lines == "proxy_set_header Last-Event-ID $http_last_event_id;"


def test_leaving_that_is_not_heard() -> None:
    assert only(layer(), proxy(left_s=5.0))[1] == "proxy_ignore_client_abort off;"


def test_websockets_that_are_not_passed_on() -> None:
    says, lines = only(layer(), proxy(socket=Socket("/ws is answered 404")))
    assert says == "nginx at :8080 does not pass WebSockets on: /ws is answered 404"
    assert "proxy_set_header Upgrade $http_upgrade;" in lines
    assert "proxy_pass http://127.0.0.1:8000;" in lines
    assert only(layer(), proxy(socket=Socket(cut_after_s=3)))[1] == "proxy_read_timeout 310s;"


def test_a_host_that_is_not_the_browsers() -> None:
    assert only(layer(), proxy(as_page=403))[1] == "proxy_set_header Host $http_host;"


@pytest.mark.parametrize(
    ("failure", "fault", "line"),
    [
        (Failure(None, problem="Connection refused"), Fault.UNREACHABLE, "proxy_pass http://127.0.0.1:8000;"),
        (Failure(502), Fault.UNREACHABLE, "proxy_pass http://127.0.0.1:8000;"),
        (Failure(301, location="https://a.example/"), Fault.REDIRECTS, "address"),
        (Failure(404), Fault.NOT_MILLRACE, "location / {"),
        (
            Failure(401, "this server needs a key"),
            Fault.DROPS_KEY,
            "proxy_set_header Authorization $http_authorization;",
        ),
        (Failure(403, "it serves its own machine"), Fault.CHANGES_HOST, "proxy_set_header Host $http_host;"),
        (Failure(503, "draining"), Fault.REFUSES, "docs/access.md"),
    ],
)
def test_a_layer_that_cannot_be_asked(failure: Failure, fault: Fault, line: str) -> None:
    broken = Layer("http://localhost:8080", server="nginx", failure=failure)
    assert faults(layer(), broken) == [(1, fault)]
    assert line in only(layer(), broken)[1]


def test_a_key_that_the_nearest_wants_is_to_be_given_and_not_to_be_passed_on() -> None:
    assert "MILLRACE_API_KEY" in only(Layer("http://a.example", failure=Failure(401, "this server needs a key")))[1]


def test_a_server_that_refuses_other_machines_is_no_proxys_fault() -> None:
    refused = Layer("http://a.example", server="nginx", failure=Failure(403, "it serves its own machine only"))
    assert faults(layer(), refused) == [(1, Fault.REFUSES)]


@pytest.mark.parametrize("server", ["Caddy", "cloudflare", "awselb/2.0", ""])
def test_those_who_do_not_read_nginxs_configuration_are_given_words(server: str) -> None:
    slow = stream(all_at_the_end)
    says, lines = only(layer(), proxy(server=server, stream=slow, again=slow))
    assert says.startswith(f"{product(server) or 'the proxy'} at :8080 buffers")
    assert ";" not in lines
    assert "docs/proxies.md" in lines


@pytest.mark.parametrize("fault", list(Fault))
@pytest.mark.parametrize("server", ["nginx", ""])
def test_every_fault_has_a_cure(fault: Fault, server: str) -> None:
    assert cure(fault, server, "http://behind", ["X-Run-Id"]).strip()


def test_the_server_itself_is_called_so() -> None:
    assert [product(name) for name in ("", "uvicorn", "nginx/1.22.1", "Caddy", "\x1b[2J")] == [
        "",
        "",
        "nginx",
        "Caddy",
        "",
    ]


def test_what_could_not_be_judged_is_told() -> None:
    whole = stream(events=events(all_at_the_end)[:5])
    assert "few pieces" in notes([layer(stream=whole)])[0]
    failed = stream(events=[], error="the provider is down")
    assert notes([layer(stream=failed)])[0].endswith("the provider is down")
    assert "MILLRACE_HEARTBEAT_S" in notes([layer(silence=Silence(0))])[0]


def seen(told: Sequence[Layer]) -> list[str]:
    return [one.says for one in findings(told)]


def test_addresses_are_told_without_what_is_secret_in_them() -> None:
    slow = stream(all_at_the_end)
    away = layer("https://ada:secret@millrace.example/a", server="nginx", stream=slow, again=slow)
    assert seen([layer(), away])[0].startswith("nginx at millrace.example buffers")
