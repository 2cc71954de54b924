import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.tools import ToolException

from tools.weather import MALFORMED, MAX_BYTES, Place, build_weather, choose, compass, report

LISBON = {
    "name": "Lisbon",
    "latitude": 38.71667,
    "longitude": -9.13333,
    "country_code": "PT",
    "country": "Portugal",
    "admin1": "Lisbon District",
    "timezone": "Europe/Lisbon",
}
PARIS = {"name": "Paris", "latitude": 48.85, "longitude": 2.35, "country_code": "FR", "country": "France"}
PARIS_TEXAS = {
    "name": "Paris",
    "latitude": 33.66,
    "longitude": -95.55,
    "country_code": "US",
    "country": "United States",
    "admin1": "Texas",
}
MILD = {
    "timezone": "Europe/Lisbon",
    "current": {
        "time": "2026-11-19T14:15",
        "temperature_2m": 17.4,
        "apparent_temperature": 16.0,
        "relative_humidity_2m": 71,
        "precipitation": 0.2,
        "weather_code": 61,
        "wind_speed_10m": 14.0,
        "wind_direction_10m": 318,
    },
}

Respond = Callable[[BaseHTTPRequestHandler], None]


def say(body: Any, status: int = 200) -> Respond:
    """Answer with ``body``: bytes as they are, anything else as JSON."""

    def respond(request: BaseHTTPRequestHandler) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        request.send_response(status)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    return respond


@dataclass
class OpenMeteo:
    """A weather service on loopback that answers as each test tells it, and remembers what it was asked."""

    search: Respond = field(default_factory=lambda: say({"results": [LISBON]}))
    forecast: Respond = field(default_factory=lambda: say(MILD))
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    address: str = ""
    closing: threading.Event = field(default_factory=threading.Event)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        url = urlsplit(request.path)
        self.asked.append((url.path, {key: value[0] for key, value in parse_qs(url.query).items()}))
        {"/v1/search": self.search, "/v1/forecast": self.forecast}.get(url.path, say(b"", 404))(request)

    def hang(self, _: BaseHTTPRequestHandler) -> None:
        self.closing.wait(30)

    def drip(self, request: BaseHTTPRequestHandler) -> None:
        """One byte at a time, each well within a limit on single reads."""
        request.send_response(200)
        request.end_headers()
        while not self.closing.wait(0.02):
            try:
                request.wfile.write(b" ")
            except OSError:
                return


@contextmanager
def running(service: OpenMeteo) -> Iterator[OpenMeteo]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            service.answer(self)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 64

        def handle_error(self, *_: object) -> None:
            """A client that gave up is no news."""

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        service.address = f"http://127.0.0.1:{server.server_port}"
        try:
            yield service
        finally:
            service.closing.set()
            server.shutdown()
            thread.join()


@pytest.fixture
def service() -> Iterator[OpenMeteo]:
    with running(OpenMeteo()) as service:
        yield service


async def ask(service: OpenMeteo, place: str = "Lisbon", timeout_s: float = 5.0) -> str:
    answer = await build_weather(service.address, timeout_s).ainvoke({"place": place})
    assert isinstance(answer, str)
    return answer


async def refusal(service: OpenMeteo, place: str = "Lisbon", timeout_s: float = 5.0) -> str:
    with pytest.raises(ToolException) as refused:
        await ask(service, place, timeout_s)
    assert "127.0.0.1" not in str(refused.value)
    assert len(str(refused.value)) < 700
    return str(refused.value)


async def test_it_tells_the_weather_with_units_time_and_source(service: OpenMeteo) -> None:
    assert await ask(service) == (
        "Lisbon, Lisbon District, Portugal, 2026-11-19T14:15 Europe/Lisbon: light rain, 17.4 °C, feels like 16 °C, "
        "humidity 71 %, precipitation 0.2 mm, wind 14 km/h, from the north-west. Source: Open-Meteo."
    )


async def test_it_asks_for_the_place_and_then_for_its_position(service: OpenMeteo) -> None:
    await ask(service, "  Lisbon ")
    (search, place), (forecast, position) = service.asked
    assert (search, place["name"]) == ("/v1/search", "Lisbon")
    assert (forecast, position["latitude"], position["longitude"]) == ("/v1/forecast", "38.71667", "-9.13333")
    assert {"temperature_2m", "weather_code", "wind_direction_10m"} <= set(position["current"].split(","))
    assert position["timezone"] == "auto"


def test_it_answers_without_an_event_loop(service: OpenMeteo) -> None:
    assert "17.4 °C" in build_weather(service.address).invoke({"place": "Lisbon"})


async def test_it_answers_synchronously_where_an_event_loop_already_runs_as_in_a_notebook(service: OpenMeteo) -> None:
    assert "17.4 °C" in build_weather(service.address).invoke({"place": "Lisbon"})


async def test_many_calls_at_once_each_get_their_own_answer(service: OpenMeteo) -> None:
    weather = build_weather(service.address)
    answers = await asyncio.gather(*(weather.ainvoke({"place": f"Lisbon{n}"}) for n in range(20)))
    assert len(answers) == 20
    assert {query["name"] for path, query in service.asked if path == "/v1/search"} == {f"Lisbon{n}" for n in range(20)}


async def test_a_base_url_may_have_a_path_and_a_closing_slash(service: OpenMeteo) -> None:
    service.address += "/mirror/"
    assert "status 404" in await refusal(service)
    assert service.asked[0][0] == "/mirror/v1/search"


@pytest.mark.parametrize("address", ["api.open-meteo.com", "ftp://host", "file:///etc/passwd", "http://", "x"])
def test_an_address_that_is_none_is_refused_when_the_tool_is_built(address: str) -> None:
    with pytest.raises(ValueError, match="address"):
        build_weather(address)


# ── places ──


async def test_an_unknown_place_is_said_plainly(service: OpenMeteo) -> None:
    service.search = say({"generationtime_ms": 0.5})
    assert "No place 'Atlantis' is known" in await refusal(service, "Atlantis")
    assert len(service.asked) == 1


@pytest.mark.parametrize(
    "place", ["Paris, Texas", "paris , texas", "Paris, United States", "Paris, US", "Paris, U.S.A."]
)
async def test_a_region_tells_places_of_one_name_apart(service: OpenMeteo, place: str) -> None:
    service.search = say({"results": [PARIS, PARIS_TEXAS]})
    assert (await ask(service, place)).startswith("Paris, Texas, United States, ")
    assert service.asked[0][1]["name"].lower() == "paris"


async def test_without_a_region_the_best_known_place_is_meant(service: OpenMeteo) -> None:
    service.search = say({"results": [PARIS, PARIS_TEXAS]})
    assert (await ask(service, "Paris")).startswith("Paris, France, ")


async def test_a_place_in_the_wrong_region_is_answered_with_those_there_are(service: OpenMeteo) -> None:
    service.search = say({"results": [PARIS, PARIS_TEXAS]})
    assert "Paris, France; Paris, Texas, United States" in await refusal(service, "Paris, Narnia")


@pytest.mark.parametrize("place", ["", "  \n", ",", ", France", "x" * 101, "Lis\x00bon", "Lis\u202ebon"], ids=ascii)
async def test_what_is_no_name_of_a_place_is_never_sent(service: OpenMeteo, place: str) -> None:
    await refusal(service, place)
    assert service.asked == []


@pytest.mark.parametrize("place", ["Zürich", "東京", "a&name=b#?/../%00", "'; DROP TABLE", "http://10.0.0.1/"])
async def test_a_name_is_sent_as_a_name_whatever_is_in_it(service: OpenMeteo, place: str) -> None:
    await ask(service, place)
    assert service.asked[0] == ("/v1/search", service.asked[0][1] | {"name": place, "count": "10"})


# ── a service that fails ──


@pytest.mark.parametrize("status", [301, 400, 404, 429, 500, 503])
async def test_a_status_other_than_200_is_told(service: OpenMeteo, status: int) -> None:
    service.forecast = say({"error": True, "reason": "<script>"}, status)
    assert await refusal(service) == (
        f"The weather service answered with status {status}. Try again later, or answer without the weather."
    )


BROKEN: list[Any] = [
    b"",
    b"<html>busy</html>",
    b"\xff\xfe",
    b'{"results": [',
    b"[" * 100_000,
    b'{"results": ' + b"9" * 5000 + b"}",
    [],
    None,
    "results",
    {"results": None},
    {"results": [None]},
    {"results": [{"name": "Lisbon"}]},
    {"results": [LISBON | {"latitude": "north"}]},
    {"results": [LISBON | {"latitude": True}]},
    b'{"results": [{"name": "Lisbon", "latitude": NaN, "longitude": 1}]}',
    b'{"results": [{"name": "Lisbon", "latitude": 1' + b"0" * 400 + b', "longitude": 1}]}',
]


@pytest.mark.parametrize("body", BROKEN, ids=range(len(BROKEN)))
async def test_an_answer_of_another_shape_is_called_unreadable(service: OpenMeteo, body: Any) -> None:
    service.search = say(body)
    assert "cannot be read" in await refusal(service)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"current": None},
        {"current": {}},
        {"current": {"temperature_2m": None}},
        {"current": {"temperature_2m": "17"}},
        {"current": {"temperature_2m": 17, "weather_code": {}}},
        b'{"current": {"temperature_2m": Infinity}}',
    ],
    ids=repr,
)
async def test_a_forecast_of_another_shape_is_called_unreadable(service: OpenMeteo, body: Any) -> None:
    service.forecast = say(body)
    assert "cannot be read" in await refusal(service)


async def test_an_answer_without_end_is_cut_off(service: OpenMeteo) -> None:
    service.search = say(b" " * (MAX_BYTES + 1))
    assert "cannot be read" in await refusal(service)


@pytest.mark.parametrize("where", ["search", "forecast"])
@pytest.mark.parametrize("how", ["hang", "drip"])
async def test_a_service_that_does_not_finish_in_time_is_left(service: OpenMeteo, where: str, how: str) -> None:
    setattr(service, where, getattr(service, how))
    assert await refusal(service, timeout_s=0.25) == (
        "The weather service did not answer within 0.25 s. Try again later, or answer without the weather."
    )


def test_the_time_limit_holds_without_an_event_loop_too(service: OpenMeteo) -> None:
    service.search = service.drip
    with pytest.raises(ToolException, match=r"did not answer within 0\.25 s"):
        build_weather(service.address, 0.25).invoke({"place": "Lisbon"})


async def test_a_call_that_is_cancelled_ends_at_once(service: OpenMeteo) -> None:
    arrived = threading.Event()

    def hang(request: BaseHTTPRequestHandler) -> None:
        arrived.set()
        service.hang(request)

    service.search = hang
    call = asyncio.create_task(ask(service, timeout_s=60))
    assert await asyncio.to_thread(arrived.wait, 10)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(call, 10)


async def test_a_refused_connection_is_told(service: OpenMeteo) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        service.address = f"http://127.0.0.1:{taken.getsockname()[1]}"
    assert "cannot be reached" in await refusal(service)


async def test_a_connection_that_breaks_off_is_told(service: OpenMeteo) -> None:
    def break_off(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", "1000")
        request.end_headers()
        request.wfile.write(b"{")

    service.search = break_off
    assert "cannot be reached" in await refusal(service)


# ── what the answers mean ──


def test_values_that_are_missing_are_left_out() -> None:
    place = Place("Here", 1, 2)
    forecast = {"current": {"temperature_2m": -3, "precipitation": None, "weather_code": 1234}}
    assert report(place, forecast) == "Here, now: -3 °C. Source: Open-Meteo."


def test_what_the_service_calls_a_place_cannot_flood_the_model() -> None:
    place = choose("x", {"results": [LISBON | {"name": "x\n" * 100_000, "country": "\u202e" * 1000}]})
    assert len(str(place)) < 200
    assert str(place).isprintable()


@pytest.mark.parametrize(("degrees", "point"), [(0, "north"), (44, "north-east"), (180, "south"), (359, "north")])
def test_a_direction_is_told_as_a_point_of_the_compass(degrees: float, point: str) -> None:
    assert compass(degrees) == point


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*MILD["current"], "current", "timezone"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(json_values)
def test_any_forecast_gives_a_sentence_or_one_of_the_named_errors(forecast: Any) -> None:
    with suppress(*MALFORMED):
        assert report(Place("Here", 1, 2), forecast).startswith("Here, ")
