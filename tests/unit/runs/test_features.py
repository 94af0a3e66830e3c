"""The fingerprint of cached features."""

from pathlib import Path

import pytest
from torch import nn

from blip3o.runs import features
from blip3o.runs.features import encoder_fingerprint
from blip3o.runs.start import load_recipe
from blip3o.train.config import RunConfig


def test_the_fingerprint_changes_with_the_way_images_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = load_recipe("pocket.generation", Path("runs") / "x")
    assert isinstance(config, RunConfig)
    encoder = nn.Linear(2, 2)
    before = encoder_fingerprint(config, encoder)
    assert encoder_fingerprint(config, encoder) == before
    monkeypatch.setattr(features, "READING", features.READING + 1)
    assert encoder_fingerprint(config, encoder) != before
