"""What a call costs: the operator's prices, then the table's; an unknown price is none, and nothing is fetched."""

import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import genai_prices
import pytest
from genai_prices.data_snapshot import get_snapshot
from hypothesis import given
from hypothesis import strategies as st

from app.runs.prices import MOST_USD, Price, Prices, PricesError, load_prices

PRICES = Prices()

counts = st.integers(0, 10**9)
dollars = st.floats(0, MOST_USD)
names = st.text(max_size=300)


def cost(
    model: str,
    provider: str = "openai",
    *,
    prices: Prices = PRICES,
    sent: int = 1000,
    received: int = 100,
    cached: int = 0,
) -> float | None:
    return prices.cost(model, provider, input_tokens=sent, output_tokens=received, cached_tokens=cached)


def known(model: str, provider: str, *, sent: int, received: int, cached: int = 0) -> float:
    found = cost(model, provider, sent=sent, received=received, cached=cached)
    assert found is not None
    return found


# The table


def sold_by_the_token() -> Iterator[tuple[str, str]]:
    """Every model of the table that has a price for tokens, by its own id where that finds it."""
    for provider in get_snapshot().providers:
        for model in provider.models:
            prices = model.get_prices(datetime.now(UTC))
            units = {unit for unit, price in vars(prices).items() if price is not None}
            if units & {"input_mtok", "output_mtok"} and provider.find_model(model.id) is model:
                yield model.id, provider.id


@pytest.mark.parametrize(("sent", "received", "cached"), [(1000, 100, 0), (1000, 100, 900), (300_000, 7, 3), (0, 0, 0)])
def test_costs_are_the_tables_own_for_every_model_in_it(sent: int, received: int, cached: int) -> None:
    at, checked = datetime(2026, 5, 4, 18, 0, tzinfo=UTC), 0
    for model, provider in sold_by_the_token():
        usage = genai_prices.Usage(
            input_tokens=sent, output_tokens=received, cache_read_tokens=cached, output_reasoning_tokens=0
        )
        theirs = genai_prices.calc_price(usage, model, provider_id=provider, genai_request_timestamp=at)
        ours = PRICES.cost(model, provider, input_tokens=sent, output_tokens=received, cached_tokens=cached, at=at)
        assert ours == pytest.approx(float(theirs.total_price), rel=1e-9, abs=1e-15), (provider, model)
        checked += 1
    assert checked > 500


@pytest.mark.parametrize(
    ("model", "langchains", "tables"),
    [
        ("gpt-4o", "azure", "azure"),
        ("gpt-4o", "azure_openai", "azure"),
        ("claude-sonnet-4-5", "anthropic", "anthropic"),
        ("gemini-2.5-flash", "google_genai", "google"),
        ("models/gemini-2.5-flash", "google_genai", "google"),
        ("gemini-2.5-flash", "google_vertexai", "google"),
        ("anthropic.claude-3-5-sonnet-20240620-v1:0", "amazon_bedrock", "aws"),
        ("us.anthropic.claude-3-5-sonnet-20240620-v1:0", "bedrock_converse", "aws"),
        ("mistral-large-latest", "mistralai", "mistral"),
        ("llama-3.3-70b-versatile", "groq", "groq"),
        ("grok-4", "xai", "x-ai"),
        ("deepseek-chat", "deepseek", "deepseek"),
        ("sonar", "perplexity", "perplexity"),
    ],
)
def test_langchains_names_of_providers_are_understood(model: str, langchains: str, tables: str) -> None:
    assert cost(model, langchains) is not None
    assert cost(model, langchains) == cost(model, tables)


def test_the_price_of_a_provider_that_is_not_in_the_table_is_the_makers() -> None:
    assert cost("gpt-5-mini", "somebodys-gateway") == cost("gpt-5-mini", "openai") is not None
    assert cost("claude-sonnet-4-5", "") == cost("claude-sonnet-4-5", "anthropic") is not None


def test_a_model_on_ones_own_machine_has_no_makers_price() -> None:
    assert cost("deepseek-chat", "deepseek") is not None
    assert cost("deepseek-chat", "ollama") is None


def test_an_unknown_price_is_none_and_not_nothing() -> None:
    assert cost("my-own-model") is None
    assert cost("nonesuch", "nobody") is None
    assert cost("whisper-1", "openai") is None  # sold by the hour


def test_a_model_that_is_free_costs_nothing() -> None:
    assert cost("mistral-nemo:free", "mistral") == 0.0


def test_the_simulated_model_costs_what_the_default_model_does() -> None:
    assert cost("simulated") == cost("simulated", "") == cost("gpt-5-mini") is not None
    assert cost("simulated", prices=Prices({"simulated": Price(input=1, output=1)})) == pytest.approx(0.0011)


@given(model=names, provider=names, sent=st.integers(), received=st.integers(), cached=st.integers())
def test_no_name_and_no_number_is_too_strange(model: str, provider: str, sent: int, received: int, cached: int) -> None:
    found = PRICES.cost(
        model,
        provider,
        input_tokens=min(sent, 10**30),
        output_tokens=min(received, 10**30),
        cached_tokens=cached,
    )
    assert found is None or found >= 0


@given(sent=counts, received=counts, more=counts, cached=counts)
def test_more_tokens_never_cost_less_and_cached_ones_never_more(
    sent: int, received: int, more: int, cached: int
) -> None:
    for model, provider in (
        ("gpt-5-mini", "openai"),
        ("gemini-2.5-pro", "google_genai"),
        ("deepseek-chat", "deepseek"),
    ):
        base = known(model, provider, sent=sent, received=received)
        assert base <= known(model, provider, sent=sent + more, received=received)
        assert base <= known(model, provider, sent=sent, received=received + more)
        assert base >= known(model, provider, sent=sent, received=received, cached=cached)


def test_nothing_is_fetched() -> None:
    """Python tells of every connection and look-up of a name, and there an exception forbids it."""
    program = """
import sys
from app.runs.prices import Prices

def watch(event, _):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        sys.exit(f"{event} was called")

sys.addaudithook(watch)
prices = Prices()
assert prices.cost("gpt-5-mini", "openai", input_tokens=1, output_tokens=1) is not None
assert prices.cost("nonesuch", "nobody", input_tokens=1, output_tokens=1) is None
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


# The operator's own


@given(price=st.builds(Price, input=dollars, output=dollars, cached=st.none() | dollars), sent=counts, received=counts)
def test_the_operators_price_wins_and_is_linear(price: Price, sent: int, received: int) -> None:
    prices = Prices({"gpt-5-mini": price})
    in_dollars = (sent * price.input + received * price.output) / 1e6
    assert cost("gpt-5-mini", prices=prices, sent=sent, received=received) == pytest.approx(in_dollars)
    assert cost("gpt-5-mini", prices=prices, sent=3 * sent, received=3 * received) == pytest.approx(3 * in_dollars)


def test_cached_tokens_cost_what_is_said_and_else_what_the_input_costs() -> None:
    assert Price(input=1, output=2).cost(10**6, 0, 10**6) == 1
    assert Price(input=1, output=2, cached=0.1).cost(10**6, 0, 10**6) == pytest.approx(0.1)
    assert Price(input=1, output=2, cached=0).cost(10**6, 10**6, 500_000) == pytest.approx(2.5)


def test_a_price_by_provider_and_name_is_for_that_provider_alone_and_comes_first() -> None:
    prices = Prices({"azure_openai:gpt-4o": Price(input=1, output=0), "gpt-4o": Price(input=2, output=0)})
    assert cost("gpt-4o", "azure", prices=prices, received=0) == pytest.approx(0.001)
    assert cost("gpt-4o", "openai", prices=prices, received=0) == pytest.approx(0.002)


def test_a_colon_in_a_models_name_is_a_part_of_it() -> None:
    prices = Prices({"gpt-oss:20b": Price(input=1, output=1)})
    assert cost("gpt-oss:20b", "ollama", prices=prices) == pytest.approx(0.0011)


# The file


def test_a_file_of_prices_is_read(tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    path.write_text("""
        [models."my-model"]
        input = 0.25
        output = 2
        cached = 0.025
        [models."azure:gpt-4o"]
        input = 0
        output = 0.0
    """)
    assert load_prices(path) == {
        "my-model": Price(input=0.25, output=2, cached=0.025),
        "azure:gpt-4o": Price(input=0, output=0),
    }
    path.write_text("")
    assert load_prices(path) == {}


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("[models.a]\ninput = -1\noutput = 1\n", 2, "models.a.input must be from 0 to 1000000 US dollars"),
        ("[models.a]\ninput = 1\noutput = 1_000_001\n", 3, "models.a.output must be from 0 to 1000000"),
        ("[models.a]\ninput = 1\noutput = nan\n", 3, "must be from 0"),
        ("[models.a]\ninput = inf\noutput = 1\n", 2, "must be from 0"),
        ("[models.a]\ninput = '1'\noutput = 1\n", 2, "must be a number"),
        ("[models.a]\ninput = true\noutput = 1\n", 2, "must be a number"),
        ("[models.a]\ninput = 1\noutput = 1\n\ncache = 1\n", 5, "models.a.cache is not known; did you mean cached?"),
        (
            "[models.a]\ninput = 1\noutput = 1\nper = 3\n",
            4,
            "models.a.per is not known; known are input, output, cached",
        ),
        ("\n[models.a]\ninput = 1\n", 2, "models.a must say output"),
        ("\n\n[models.a]\n", 3, "models.a must say input"),
        ("[models]\na = 3\n", 2, "models.a must be a table"),
        ("models = 3\n", 1, "models must be tables"),
        ("\n[modles.a]\ninput = 1\n", 2, 'modles is not known; there are [models."NAME"]'),
        ('[models]\n"a=b" = {input = 1, output = 2, x = 3}\n', 1, "is not known"),
        ("[models.a]\ninput = \n", 2, ""),
        ("[models.a]\n[models.a]\n", 2, ""),
    ],
)
def test_a_mistake_is_refused_with_its_line(tmp_path: Path, text: str, line: int, problem: str) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(text)
    with pytest.raises(PricesError) as refused:
        load_prices(path)
    assert f"{path}" in str(refused.value)
    assert f"line {line}" in str(refused.value)
    assert problem in str(refused.value)


@pytest.mark.parametrize("text", ["a = " + "9" * 5000, "a = " + "[" * 5000])
def test_a_file_beyond_all_bounds_is_refused_like_any_other(tmp_path: Path, text: str) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(text)
    with pytest.raises(PricesError, match=r"prices\.toml"):
        load_prices(path)


def test_a_file_that_is_not_there_or_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(PricesError, match=r"prices\.toml: cannot be read"):
        load_prices(tmp_path / "prices.toml")
    path = tmp_path / "bytes.toml"
    path.write_bytes(b"[models.a]\ninput = 3 # \xff\n")
    with pytest.raises(PricesError, match=r"bytes\.toml, line 2: is not UTF-8"):
        load_prices(path)
