"""What a model call costs, in US dollars.

The operator's own prices come first, then pydantic's table ``genai-prices``, as it is installed: nothing is fetched, so
a price that has changed since comes with the package's next version. A price that nobody knows is ``None``, never 0.
Nothing here ever raises for what a model calls itself.

Counts are as LangChain's ``usage_metadata`` has them: cached tokens are a part of the input, reasoning tokens of the
output. Rebates that the provider gives in other ways (batches, contracts) are not known here.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from app.tomlfile import Document

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice, Provider

MOST_USD = 10**6
"""A million tokens for more than that is a slip of the hand."""

MAX_NAME_CHARS = 256
"""A longer name is no model's."""

MAX_KNOWN = 1024
"""Names whose place in the table is remembered; a name comes from the graph, perhaps by way of its caller."""

_STAND_IN = ("gpt-5-mini", "openai")
"""What the simulated model is priced like: the default model, so that pictures and budgets show something."""

_PROVIDERS = {
    "amazon_bedrock": "aws",
    "anthropic_bedrock": "aws",
    "bedrock": "aws",
    "bedrock_converse": "aws",
    "bedrock_mantle_anthropic": "aws",
    "bedrock_mantle_openai": "aws",
    "azure_ai": "azure",
    "azure_openai": "azure",
    "google_genai": "google",
    "google_vertexai": "google",
    "google_anthropic_vertex": "google",
    "mistralai": "mistral",
    "xai": "x-ai",
}
"""LangChain's names of providers (``init_chat_model``'s, and ``ls_provider`` of a call) whose name is another here."""

_OWN_MACHINE = frozenset({"ollama", "llamacpp", "huggingface", "mlx", "gpt4all"})
"""Where a model runs for nothing per token; the price that others take for a model of that name is not its."""


class PricesError(Exception):
    """The file of prices cannot be used; the message names the file and the line."""


class Price(msgspec.Struct, frozen=True, kw_only=True):
    """US dollars for a million tokens. ``cached``: for the part of the input that was read from the provider's cache.

    Without it the cached part costs what the input costs.
    """

    input: float
    output: float
    cached: float | None = None

    def cost(self, input_tokens: int, output_tokens: int, cached_tokens: int) -> float:
        """US dollars; the cached tokens are a part of the input."""
        cached = self.input if self.cached is None else self.cached
        fresh = input_tokens - cached_tokens
        return (fresh * self.input + cached_tokens * cached + output_tokens * self.output) / 1_000_000


class Prices:
    """Prices by model. ``overrides``: by the model's name, or by ``provider:name``, which is looked at first."""

    def __init__(self, overrides: Mapping[str, Price] = {}) -> None:
        # Not at the module's top, as it takes 150 ms; and not at the first call, as the event loop would stand still.
        from genai_prices.data_snapshot import get_snapshot  # noqa: PLC0415

        self._overrides = {_canonical(name): price for name, price in overrides.items()}
        self._table: list[Provider] = get_snapshot().providers
        self._found = lru_cache(MAX_KNOWN)(self._find)  # the package's own memory of names has no bound

    def cost(
        self,
        model: str,
        provider: str,
        *,
        input_tokens: int,
        output_tokens: int,
        cached_tokens: int = 0,
        at: datetime | None = None,
    ) -> float | None:
        """US dollars; ``None`` for an unknown price. ``at``: when (now), as some prices differ by the time of day."""
        sent, received = max(input_tokens, 0), max(output_tokens, 0)
        cached = min(max(cached_tokens, 0), sent)
        own = self._overrides.get(f"{_PROVIDERS.get(provider, provider)}:{model}") or self._overrides.get(model)
        if own is not None:
            return own.cost(sent, received, cached)
        if model == "simulated":
            model, provider = _STAND_IN
        info = self._found(model, provider) if len(model) <= MAX_NAME_CHARS else None
        return None if info is None else _cost(info.get_prices(at or datetime.now(UTC)), sent, received, cached)

    def _find(self, model: str, provider: str) -> "ModelInfo | None":
        seller = self._seller(model, provider)
        if seller is None:
            return None
        name = model.removeprefix("models/") if seller.id == "google" else model
        return seller.find_model(name, all_providers=self._table)

    def _seller(self, model: str, provider: str) -> "Provider | None":
        """Whose prices count: the provider's; of one that is not in the table, those of the model's maker."""
        from genai_prices.data_snapshot import find_provider_by_id  # noqa: PLC0415

        if known := find_provider_by_id(self._table, _PROVIDERS.get(provider, provider)):
            return known
        if provider in _OWN_MACHINE:
            return None
        name = model.lower()
        return next((one for one in self._table if one.model_match and one.model_match.is_match(name)), None)


def _canonical(name: str) -> str:
    provider, colon, model = name.partition(":")
    return f"{_PROVIDERS[provider]}:{model}" if colon and provider in _PROVIDERS else name


def _cost(prices: "ModelPrice", input_tokens: int, output_tokens: int, cached_tokens: int) -> float | None:
    """By the table's price. The package's own arithmetic is for far more kinds of units, and takes 70 µs."""
    units = {unit for unit, price in vars(prices).items() if price is not None}
    if not units:
        return 0.0  # it is free
    if units.isdisjoint({"input_mtok", "output_mtok"}):
        return None  # sold by the hour, the page, the character
    sent, received, cached = prices.input_mtok, prices.output_mtok, prices.cache_read_mtok
    price = Price(
        input=_rate(sent, input_tokens),
        output=_rate(received, input_tokens),
        cached=None if cached is None else _rate(cached, input_tokens),
    )
    return price.cost(input_tokens, output_tokens, cached_tokens) + _rate(prices.requests_kcount, input_tokens) / 1000


def _rate(price: Any, input_tokens: int) -> float:
    """Dollars for a million. Above a number of input tokens some models cost more, for all of the tokens."""
    if price is None:
        return 0.0
    if isinstance(price, Decimal):
        return float(price)
    return float(next((tier.price for tier in reversed(price.tiers) if input_tokens > tier.start), price.base))


def load_prices(path: Path) -> dict[str, Price]:
    """The prices of a file, for ``Prices``. Raises ``PricesError``.

    ::

        [models."my-model"]
        input = 0.25
        output = 2.0
        cached = 0.025
    """
    file = Document(path, PricesError)
    for name in file.values:
        if name != "models":
            raise file.wrong((name,), 'is not known; there are [models."NAME"]')
    models = file.values.get("models", {})
    if not isinstance(models, dict):
        raise file.wrong(("models",), 'must be tables: [models."NAME"]')
    return {name: _price(file, ("models", name), values) for name, values in models.items()}


def _price(file: Document, place: tuple[str, str], values: Any) -> Price:
    if not isinstance(values, dict):
        raise file.wrong(place, "must be a table")
    for key, value in values.items():
        at = (*place, key)
        if key not in Price.__struct_fields__:
            raise file.unknown(at, Price.__struct_fields__)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise file.wrong(at, "must be a number")
        if not 0 <= value <= MOST_USD:  # false for nan too
            raise file.wrong(at, f"must be from 0 to {MOST_USD} US dollars for a million tokens, and is {value}")
    for key in ("input", "output"):
        if key not in values:
            raise file.wrong(place, f"must say {key}, in US dollars for a million tokens")
    return Price(**values)
