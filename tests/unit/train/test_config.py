"""Refused settings of a run, and settings that may change when it resumes."""

from typing import Any

import pytest

from blip3o.core.config import evolve, to_dict
from blip3o.core.errors import UsageError
from blip3o.train.config import resume_differences


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.steps", 0),
        ("train.global_batch_size", 0),
        ("train.micro_batch_size", -1),
        ("train.log_every", 0),
        ("train.checkpoint_every", 0),
        ("train.sample_every", -1),
        ("train.keep_last", 0),
        ("train.grad_clip", 0.0),
        ("train.ema_decay", 1.0),
        ("train.max_nonfinite_steps", -1),
        ("train.optimizer.lr", 0.0),
        ("train.optimizer.min_lr", 1.0),
        ("train.optimizer.betas", [0.9, 1.0]),
        ("train.optimizer.lr_multipliers", {"head": -1.0}),
    ],
)
def test_numbers_out_of_range_are_refused_by_name(toys: Any, key: str, value: Any) -> None:
    with pytest.raises(UsageError, match=key.rpartition(".")[2]):
        evolve(toys.config, {key: value})


def test_duration_frequency_and_place_may_change(toys: Any) -> None:
    changes = {"train.steps": 20, "train.log_every": 9, "train.profile": True}
    other = evolve(toys.config, {**changes, "data.num_workers": 4})
    assert resume_differences(to_dict(toys.config), other) == []


def test_a_run_without_a_newer_setting_can_be_resumed(toys: Any) -> None:
    stored = to_dict(toys.config)
    del stored["train"]["compile"], stored["data"]["bad_sample_limit"]
    assert resume_differences(stored, toys.config) == []
    changed = evolve(toys.config, {"train.compile": True})
    assert resume_differences(stored, changed) == ["train.compile"]


def test_a_run_of_an_older_version_that_stored_the_image_size_resumes(toys: Any) -> None:
    stored = to_dict(toys.config)
    stored["data"]["image_px"] = 16
    del stored["data"]["bad_sample_limit"]
    assert resume_differences(stored, toys.config) == []


def test_every_other_change_is_named_by_its_path(toys: Any) -> None:
    changes = {
        "train.seed": 7,
        "train.optimizer.lr": 0.5,
        "data.mixture.0.weight": 3.0,
        "train.trainable": ["head"],
        "model.generator.num_layers": 9,
    }
    changed = evolve(toys.config, changes)
    assert set(resume_differences(to_dict(toys.config), changed)) == set(changes)
