"""The weather now, from Open-Meteo (https://open-meteo.com), which needs no key.

Two requests a call: the place is looked up by name, then its weather by position. Both together take no longer
than the time limit, an answer no more than ``MAX_BYTES``; redirects are not followed. Nothing is shared between
calls but the TLS settings, so that any number of them may run at once, in any event loop.

What the service does wrong is told to the model in a sentence without address or trace, so that it can go on
without the weather.
"""

import asyncio
import json
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Self

import httpx
from langchain_core.tools import BaseTool, ToolException, tool

GEOCODING_URL: Final = "https://geocoding-api.open-meteo.com"
FORECAST_URL: Final = "https://api.open-meteo.com"
MAX_BYTES: Final = 1 << 18
MAX_PLACE: Final = 100

INSTEAD: Final = "Try again later, or answer without the weather."
UNREADABLE: Final = f"The weather service sent an answer that cannot be read. {INSTEAD}"
# What reading a foreign JSON value can raise, whatever its shape.
MALFORMED: Final = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def build_weather(base_url: str | None = None, timeout_s: float = 5.0) -> BaseTool:
    """The weather tool: ``place`` in, one sentence out; ``ToolException`` for an unknown place or a failing service.

    ``base_url`` serves both ``/v1/search`` and ``/v1/forecast``; ``None`` means Open-Meteo's two public hosts.
    ``timeout_s`` bounds a whole call, in seconds. Raises ``ValueError`` when ``base_url`` is no http address.
    """
    service = Service(
        geocoding_url=checked(base_url or GEOCODING_URL),
        forecast_url=checked(base_url or FORECAST_URL),
        timeout_s=timeout_s,
    )
    # Reading the certificates takes some 30 ms: here, and not on the event loop at every call.
    tls = httpx.create_ssl_context()

    async def look_up(place: str) -> str:
        async with httpx.AsyncClient(verify=tls, timeout=timeout_s, headers={"Accept-Encoding": "identity"}) as client:
            return await service.weather(client, place)

    @tool(parse_docstring=True)
    def weather(place: str) -> str:
        """Look up the current weather at a place: sky, temperature (°C), humidity, wind (km/h), precipitation (mm).

        Args:
            place: A town or city in English, with its region or country where it could be another one, for example
                "Lisbon" or "Paris, Texas".
        """
        # In a thread with a loop of its own, because a notebook's loop already runs.
        with ThreadPoolExecutor(max_workers=1) as thread:
            return thread.submit(lambda: asyncio.run(look_up(place))).result()

    weather.metadata = {"label": "Looking up the weather…"}
    return weather.model_copy(update={"coroutine": look_up})


def checked(url: str) -> str:
    """``url`` without a closing slash; raises ``ValueError`` when it is no http or https address."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = httpx.URL()
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise ValueError("The weather service's address must be like https://api.open-meteo.com")
    return url.rstrip("/")


@dataclass(frozen=True, slots=True)
class Service:
    """Where Open-Meteo answers, and how long it may take. It speaks HTTP; what the answers mean is decided below."""

    geocoding_url: str
    forecast_url: str
    timeout_s: float

    async def weather(self, client: httpx.AsyncClient, place: str) -> str:
        """The weather at ``place`` in one sentence."""
        place = cleaned(place)
        try:
            # httpx's own limit is for each read: a service that sends a byte a second would never reach it.
            async with asyncio.timeout(self.timeout_s):
                return await self._weather(client, place)
        except (TimeoutError, httpx.TimeoutException) as error:
            message = f"The weather service did not answer within {self.timeout_s:g} s. {INSTEAD}"
            raise ToolException(message) from error
        except httpx.HTTPError as error:
            raise ToolException(f"The weather service cannot be reached. {INSTEAD}") from error

    async def _weather(self, client: httpx.AsyncClient, place: str) -> str:
        query = {"name": place.partition(",")[0].strip(), "count": "10", "language": "en", "format": "json"}
        try:
            found = choose(place, await answer(client, f"{self.geocoding_url}/v1/search", query))
            forecast = await answer(client, f"{self.forecast_url}/v1/forecast", found.query())
            return report(found, forecast)
        except MALFORMED as error:
            raise ToolException(UNREADABLE) from error


async def answer(client: httpx.AsyncClient, url: str, query: Mapping[str, str]) -> Any:
    """The JSON value at ``url``; raises ``ToolException`` unless it is a 200 of no more than ``MAX_BYTES``."""
    body = bytearray()
    async with client.stream("GET", url, params=query) as response:
        if response.status_code != httpx.codes.OK:
            raise ToolException(f"The weather service answered with status {response.status_code}. {INSTEAD}")
        # Raw: an answer that is compressed although we asked for none cannot swell in memory.
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > MAX_BYTES:
                raise ToolException(UNREADABLE)
    return json.loads(body)


# ── what was asked, and what the answers mean ────────────────────────────────────────────────────────────────────


def cleaned(place: str) -> str:
    """``place`` on one line; raises ``ToolException`` when no place can be called that."""
    place = " ".join(place.split())
    if not place.partition(",")[0].strip():
        raise ToolException('Name a place, for example "Lisbon" or "Paris, Texas".')
    if len(place) > MAX_PLACE or not place.isprintable():
        raise ToolException(f"Name one place in plain letters, no more than {MAX_PLACE} of them.")
    return place


@dataclass(frozen=True, slots=True)
class Place:
    """A place on Earth, in degrees north and east; ``within`` are its regions, the largest last."""

    name: str
    latitude: float
    longitude: float
    within: tuple[str, ...] = ()
    country_code: str = ""

    @classmethod
    def read(cls, found: Mapping[str, Any]) -> Self:
        """One result of ``/v1/search``."""
        regions = (text(found.get(key)) for key in ("admin4", "admin3", "admin2", "admin1", "country"))
        return cls(
            name=text(found["name"]),
            latitude=number(found["latitude"]),
            longitude=number(found["longitude"]),
            within=tuple(region for region in regions if region),
            country_code=text(found.get("country_code")),
        )

    def query(self) -> dict[str, str]:
        """What ``/v1/forecast`` is asked: the current values, in the place's own time."""
        current = ",".join(("weather_code", "temperature_2m", *DETAILS))
        place = {"latitude": f"{self.latitude}", "longitude": f"{self.longitude}"}
        return place | {"current": current, "timezone": "auto"}

    def lies_in(self, region: str) -> bool:
        """Whether ``region`` names one of its regions, or its country by name or code."""
        wanted = region.strip().casefold().replace(".", "")
        names = {name.casefold() for name in (*self.within, self.country_code)}
        return not wanted or COUNTRIES.get(wanted, wanted) in names

    def __str__(self) -> str:
        return ", ".join(dict.fromkeys((self.name, *self.within[-2:])))


def choose(place: str, found: Any) -> Place:
    """The first result that lies in every region ``place`` names; raises ``ToolException`` when there is none."""
    _, *regions = place.split(",")
    places = [Place.read(result) for result in found.get("results", [])]
    for candidate in places:
        if all(candidate.lies_in(region) for region in regions):
            return candidate
    if places:
        others = "; ".join(dict.fromkeys(str(other) for other in places[:5]))
        raise ToolException(f"No place {place!r} is known. Places of that name: {others}. Ask for one of them.")
    raise ToolException(f"No place {place!r} is known. Try its English name, or a larger town nearby.")


def report(place: Place, forecast: Any) -> str:
    """The weather in one sentence, with its units, its time and its source."""
    current = forecast["current"]
    parts = [SKY.get(current.get("weather_code"), ""), f"{number(current['temperature_2m']):g} °C"]
    parts += [say(number(current[key])) for key, say in DETAILS.items() if current.get(key) is not None]
    when = f"{text(current.get('time'))} {text(forecast.get('timezone'))}".strip() or "now"
    return f"{place}, {when}: {', '.join(part for part in parts if part)}. Source: Open-Meteo."


def compass(degrees: float) -> str:
    """The nearest of eight points."""
    return POINTS[round(degrees / 45) % len(POINTS)]


def number(value: Any) -> float:
    """``value``, when it is a finite number; raises ``TypeError`` or ``ValueError``."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError("not a number")
    if not math.isfinite(value):
        raise ValueError("not finite")
    return float(value)


def text(value: Any) -> str:
    """``value`` on one short line, when it is text; else nothing. It ends up in front of the model."""
    return "".join(letter for letter in value[:80] if letter.isprintable()) if isinstance(value, str) else ""


# Short names that people write and the service does not.
COUNTRIES: Final[Mapping[str, str]] = {"usa": "us", "america": "us", "uk": "gb", "britain": "gb", "uae": "ae"}
POINTS: Final[Sequence[str]] = (
    "north",
    "north-east",
    "east",
    "south-east",
    "south",
    "south-west",
    "west",
    "north-west",
)
DETAILS: Final[Mapping[str, Callable[[float], str]]] = {
    "apparent_temperature": "feels like {:g} °C".format,
    "relative_humidity_2m": "humidity {:g} %".format,
    "precipitation": "precipitation {:g} mm".format,
    "wind_speed_10m": "wind {:g} km/h".format,
    "wind_direction_10m": lambda degrees: f"from the {compass(degrees)}",
}
# WMO code table 4677, as far as Open-Meteo uses it.
SKY: Final[Mapping[Any, str]] = {
    0: "clear sky",
    1: "mainly clear",
    2: "partly cloudy",
    3: "overcast",
    45: "fog",
    48: "freezing fog",
    51: "light drizzle",
    53: "drizzle",
    55: "dense drizzle",
    56: "light freezing drizzle",
    57: "freezing drizzle",
    61: "light rain",
    63: "rain",
    65: "heavy rain",
    66: "light freezing rain",
    67: "freezing rain",
    71: "light snow",
    73: "snow",
    75: "heavy snow",
    77: "snow grains",
    80: "light showers",
    81: "showers",
    82: "violent showers",
    85: "light snow showers",
    86: "heavy snow showers",
    95: "thunderstorm",
    96: "thunderstorm with hail",
    99: "thunderstorm with heavy hail",
}
