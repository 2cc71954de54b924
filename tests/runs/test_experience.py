"""What is known of a model by its last answers, for calls that never got the provider's own numbers."""

from hypothesis import given
from hypothesis import strategies as st

from app.runs.experience import FARTHEST, LAST, Experience


def learned(*answers: int, counted: int = 100, input_tokens: int = 100) -> Experience:
    one = Experience()
    for tokens in answers:
        one.learn("chat", "m", counted=counted, input_tokens=input_tokens, output_tokens=tokens)
    return one


def test_nothing_is_said_of_what_is_not_known() -> None:
    one = learned()
    assert one.rest("chat", "m", 10) == 0
    assert one.input_tokens("chat", "m", 77) == 77


def test_an_answer_would_have_gone_on_as_those_that_went_farther() -> None:
    one = learned(100, 200, 300, 400)
    assert one.rest("chat", "m", 0) == 250
    assert one.rest("chat", "m", 250) == 100  # 300 and 400 went on by 50 and 150
    assert one.rest("chat", "m", 400) == 0
    assert one.rest("chat", "other", 0) == one.rest("research", "m", 0) == 0


def test_our_count_of_an_input_is_set_right_by_the_providers() -> None:
    assert learned(1, counted=100, input_tokens=130).input_tokens("chat", "m", 200) == 260
    assert learned(1, counted=1, input_tokens=10_000).input_tokens("chat", "m", 10) == 10 * FARTHEST


def test_only_the_last_answers_count_and_only_so_many_models_are_known() -> None:
    one = learned(*[10] * LAST, *[1000] * LAST)
    assert one.rest("chat", "m", 0) == 1000
    few = Experience(max_known=2)
    for model in ("a", "b", "a", "c"):
        few.learn("chat", model, counted=1, input_tokens=1, output_tokens=50)
    assert [few.rest("chat", model, 0) for model in ("a", "b", "c")] == [50, 0, 50]


@given(st.lists(st.integers(0, 10_000), max_size=80), st.integers(0, 10_000))
def test_an_estimate_is_never_negative_nor_longer_than_the_longest(answers: list[int], sent: int) -> None:
    rest = learned(*answers).rest("chat", "m", sent)
    assert 0 <= rest <= max([*answers, sent]) - min(sent, max([*answers, sent]))
