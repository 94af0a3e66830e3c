"""Verdicts of a scorer that fails on some samples."""

import importlib.util
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("pydantic")

from blip3o.eval.benchmark import Item, Sample
from blip3o.eval.rewards import Reward
from blip3o.eval.rewards.worker import judged

SPEC = importlib.util.spec_from_file_location(
    "reward_fakes", Path(__file__).with_name("reward_fakes.py")
)
assert SPEC is not None
assert SPEC.loader is not None
FAKES = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(FAKES)


def rewards(*does: str) -> list[Reward]:
    samples = {
        place: Sample(
            item=Item(id=f"r{place}", number=place, data={"does": what}),
            number=0,
            sha256="",
            image=Image.new("RGB", (8, 8), (51 * place, 0, 0)),
        )
        for place, what in enumerate(does)
    }
    found = dict(judged(FAKES.FakeScorer(), samples))
    assert sorted(found) == sorted(samples)
    return [found[place] for place in samples]


def test_verdicts_in_another_order_belong_to_their_samples() -> None:
    assert [one.score for one in rewards("judge", "judge", "judge")] == [0, 0.2, 0.4]


def test_an_error_of_the_scorer_affects_only_its_sample() -> None:
    found = rewards("judge", "raise", "judge", "raise", "judge")
    assert [one.score for one in found] == [0, None, 0.4, None, 0.8]
    assert [one.outcome for one in found] == [
        *("judged", "transport", "judged", "transport", "judged")
    ]
    assert "RuntimeError: cannot judge this" in found[1].data["error"]


def test_a_sample_without_a_verdict_has_an_outcome() -> None:
    found = rewards("skip", "judge")
    assert [one.outcome for one in found] == ["transport", "judged"]
    assert "no verdict" in found[0].data["error"]


def test_no_samples_need_no_scorer() -> None:
    assert rewards() == []
