"""The model of the built-in agents, by its name."""

import pytest
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI

from app.simulator.server import Simulator
from chains.models import build_model


def test_a_model_behind_ones_own_address_reports_its_usage_in_streams() -> None:
    with Simulator(tokens_per_second=0) as provider:
        model = build_model("openai:simulated", base_url=provider.base_url)
        chunks = list(model.stream([HumanMessage("[[tokens=7]] hello")]))
    usage = [chunk.usage_metadata for chunk in chunks if getattr(chunk, "usage_metadata", None)]
    assert usage
    assert usage[-1] is not None
    assert usage[-1]["output_tokens"] == 7


def test_a_server_of_ones_own_needs_no_key() -> None:
    model = build_model("openai:some-model", base_url="http://127.0.0.1:1/v1")
    assert isinstance(model, ChatOpenAI)
    assert model.model_name == "some-model"


def test_what_is_not_installed_is_named() -> None:
    with pytest.raises(ImportError, match="langchain-mistralai"):
        build_model("mistralai:some-model")


def test_what_nobody_knows_is_named() -> None:
    with pytest.raises(ValueError, match="nonsense"):
        build_model("nonsense:some-model")
