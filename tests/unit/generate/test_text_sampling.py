"""The draw of a token follows its documented definition for all settings."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from blip3o.core.errors import UsageError
from blip3o.core.rng import numpy_rng
from blip3o.generate.text_sampling import TextSampling, TokenChooser

EDGES: list[dict[str, Any]] = [
    {},
    {"top_k": 1},
    {"top_k": 3},
    {"top_k": 999},
    {"top_p": 0.5},
    {"top_p": 1e-12},
    {"top_p": math.nextafter(1, 0)},
    {"top_p": 0.9, "top_k": 5},
    {"temperature": 1e-300},
    {"temperature": 1e300},
    {"temperature": 0.3, "top_p": 0.7, "top_k": 20},
]


def chooser(number: int = 0, **settings: Any) -> TokenChooser:
    given: Any = {"temperature": 1.0, "seed": 5, **settings}
    return TokenChooser(TextSampling.of(**given), number)


def plain(logits: torch.Tensor, sampling: TextSampling, number: int, place: int) -> int:
    """Returns the token by the definition in `TokenChooser`, written out plainly."""
    scores = logits.double().tolist()
    ranked = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    ranked = ranked[: sampling.top_k or None]
    weights = {i: math.exp((scores[i] - max(scores)) / sampling.temperature) for i in ranked}
    needed = sampling.top_p * math.fsum(weights.values())
    kept: list[int] = []
    while len(kept) < len(ranked) and math.fsum(weights[i] for i in kept) < needed:
        kept.append(ranked[len(kept)])
    assert sampling.seed is not None
    u = numpy_rng((sampling.seed + number) % 2**63, "text", place).random()
    level = u * math.fsum(weights[i] for i in kept)
    done = 0.0
    for i in sorted(kept):
        done += weights[i]
        if done > level:
            return i
    raise AssertionError("the weights do not reach their sum")


@pytest.mark.parametrize("settings", EDGES)
@pytest.mark.parametrize("vocabulary", [1, 7, 400])
def test_a_token_is_drawn_as_the_definition_says(settings: dict[str, Any], vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(0)
    given: Any = {"temperature": 1.0, "seed": 2**63 - 1, **settings}
    sampling = TextSampling.of(**given)
    for place in range(40):
        logits = 3 * torch.randn(vocabulary, generator=generator)
        if place % 2:
            logits = logits.round()  # many equal ones
        if vocabulary > 1 and place % 3:
            logits[0] = -torch.inf
        number = place % 4
        drawn = TokenChooser(sampling, number).draw(logits, place)
        assert drawn == plain(logits, sampling, number, place)


def test_tokens_come_as_often_as_their_probability() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -torch.inf])
    draws = [chooser().draw(logits, place) for place in range(4000)]
    shares = np.bincount(draws, minlength=4) / len(draws)
    assert np.abs(shares - logits.softmax(0).numpy()).max() < 0.03
    assert shares[3] == 0
    cold = [chooser(temperature=0.2).draw(logits, place) for place in range(200)]
    assert cold.count(2) > 190


def test_a_token_depends_on_seed_number_and_place_and_on_nothing_else() -> None:
    logits = torch.zeros(10_000)
    known = chooser(1).draw(logits, 2)
    assert chooser(0, seed=6).draw(logits, 2) == known
    assert chooser(0).draw(logits, 2) != known
    assert chooser(1).draw(logits, 3) != known
    busy = chooser(1)
    for place in (7, 2, 9):
        busy.draw(torch.randn(50), place)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002  (a global state that must not matter)
    assert busy.draw(logits, 2) == known
    # Half types and fp32 hold the same numbers here.
    assert chooser(1).draw(logits.bfloat16(), 2) == known


def test_a_drawn_seed_is_another_each_time() -> None:
    seeds = {TextSampling().seeded().seed for _ in range(20)}
    assert len(seeds) == 20
    assert TextSampling(seed=0).seeded().seed == 0


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_logits_that_are_not_numbers_raise_an_error(bad: float) -> None:
    with pytest.raises(ValueError, match="not numbers"):
        chooser().draw(torch.tensor([0.0, bad]), 0)


def test_settings_have_names_and_a_stop_text_may_be_single() -> None:
    assert TextSampling.of() == TextSampling()
    assert TextSampling.of(stop="end", seed=1) == TextSampling(stop=("end",), seed=1)
    assert TextSampling.of(stop=["a", "b"]).stop == ("a", "b")
    with pytest.raises(TypeError, match="nucleus"):
        TextSampling.of(nucleus=1)  # type: ignore[call-arg]
    with pytest.raises(UsageError, match="a stop text is empty"):
        TextSampling.of(stop="")
