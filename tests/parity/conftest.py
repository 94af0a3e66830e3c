"""Finds the recorded inputs and outputs of the released system; tests name no case and no size.

A test marked `parity_cases(pattern)` runs once for every recorded file that the pattern finds and
gets it as the argument `case`; `without=TEXT` leaves out names that hold a text. A pattern that
finds nothing fails: a family never goes missing silently.
"""

import dataclasses
import functools
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from blip3o.models.decoders.pocket import PocketDecoderConfig
from blip3o.models.dit.nextdit import NextDiTConfig
from blip3o.models.encoders.siglip2 import Siglip2EncoderConfig
from blip3o.models.quantize import quantize_backbone
from blip3o.models.unified import SamplingConfig, UnifiedModel, UnifiedModelConfig
from blip3o.nn.quantized import QUANTIZATIONS
from blip3o.weights.keymaps import blip3o_qwen, blip3o_qwen3

_DEFAULT_FOLDER = Path(__file__).parent.parent / "data" / "parity"


@dataclasses.dataclass(frozen=True)
class RecordedCase:
    """One recorded file and those that lie beside it under the same name.

    Args:
        path: the file that the test's pattern found.
    """

    path: Path

    def tensors(self, ending: str | None = None) -> dict[str, Tensor]:
        """Returns the tensors of a file, fp32 where they are stored as exact halves.

        Args:
            ending: "forward" stands for the file NAME_forward beside NAME_weights; None for the
                case's own file.
        """
        values = load_file(self.path if ending is None else self._beside(f"_{ending}.safetensors"))
        half = torch.float16
        return {name: v.float() if v.dtype == half else v for name, v in values.items()}

    def settings(self) -> dict[str, Any]:
        """Returns the JSON of the case: its own file, or NAME.json beside NAME_weights."""
        path = self.path if self.path.suffix == ".json" else self._beside(".json")
        return json.loads(path.read_text(encoding="utf-8"))

    def neighbor(self, name: str) -> "RecordedCase":
        """Returns another file of the same folder."""
        return RecordedCase(self.path.with_name(name))

    def _beside(self, ending: str) -> Path:
        name = self.path.stem.rpartition("_")[0]
        return self.path.with_name(name + ending)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marker = metafunc.definition.get_closest_marker("parity_cases")
    if marker is None:
        return
    folder = Path(os.environ.get("BLIP3O_PARITY_DIR", _DEFAULT_FOLDER))
    left_out = marker.kwargs.get("without")
    paths = sorted(p for p in folder.glob(marker.args[0]) if not (left_out and left_out in p.stem))
    if not paths:
        raise FileNotFoundError(f"no recorded case matches {folder / marker.args[0]}")
    cases = [RecordedCase(path) for path in paths]
    metafunc.parametrize("case", cases, ids=[path.stem for path in paths])


@pytest.fixture
def dit_config() -> Callable[[dict[str, Any]], NextDiTConfig]:
    """Returns a function: our config of a recorded one."""
    return _dit_config


def _dit_config(recorded: dict[str, Any]) -> NextDiTConfig:
    assert recorded["qk_norm"]
    assert not recorded["learn_sigma"]
    return NextDiTConfig(
        in_channels=recorded["in_channels"],
        condition_size=recorded["latent_embedding_size"],
        hidden_size=recorded["dim"],
        num_layers=recorded["n_layers"],
        num_heads=recorded["n_heads"],
        num_kv_heads=recorded["n_kv_heads"],
        grid=recorded["input_size"],
        patch_size=recorded["patch_size"],
        multiple_of=recorded["multiple_of"],
        ffn_dim_multiplier=recorded["ffn_dim_multiplier"],
        norm_eps=recorded["norm_eps"],
    )


@pytest.fixture
def published_model() -> Callable[..., UnifiedModel]:
    """Returns a function that builds a model of recorded sizes and loads recorded weights."""

    def build(
        settings: dict[str, Any],
        weights: dict[str, Tensor],
        num_queries: int,
        grid: int | None = None,
    ) -> UnifiedModel:
        load: Callable[..., None]
        if "siglip_config" in settings:
            image_token_id = settings["token_ids"]["und_image"]
            backbone = blip3o_qwen3.backbone_config(
                settings["llm_config"], settings["siglip_config"], image_token_id
            )
            load = functools.partial(
                blip3o_qwen3.load_published, parts=blip3o_qwen3.UNDERSTANDING_PARTS
            )
        else:
            backbone = blip3o_qwen.backbone_config(settings["llm_config"])
            load = blip3o_qwen.load_published
        dit = _dit_config(settings["dit_config"])
        dit = dataclasses.replace(dit, grid=dit.grid if grid is None else grid)
        channels, token_px = dit.in_channels, backbone.token_px or 4
        decoder = PocketDecoderConfig.tiny()
        scale = decoder.fine_grid // decoder.grid
        config = UnifiedModelConfig(
            backbone=backbone,
            image_encoder=Siglip2EncoderConfig(  # only its shape matters: features are recorded
                image_px=token_px * dit.grid,
                patch_px=token_px,
                hidden_size=channels,
                intermediate_size=4,
                num_layers=1,
                num_heads=1,
            ),
            num_query_tokens=num_queries,
            dit=dit,
            image_decoder=dataclasses.replace(
                decoder, feature_channels=channels, grid=dit.grid, image_px=scale * dit.grid
            ),
            sampling=SamplingConfig(truncate_timestep=True),
        )
        model = config.build().eval()
        load(model, weights, "the recorded weights")
        return model

    return build


@pytest.fixture
def say_error(
    request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> Callable[[str, float, float], None]:
    """Returns a function that prints a measured relative error and what is allowed."""

    def say(what: str, error: float, bound: float) -> None:
        with capsys.disabled():
            print(f"\n{request.node.name}: {what} err by {error:.2%}, allowed {bound:.2%}")  # noqa: T201

    return say


@pytest.fixture(params=QUANTIZATIONS)
def quantized(request: pytest.FixtureRequest) -> Callable[[UnifiedModel], float]:
    """Returns a function that quantizes a backbone and bounds the relative error of its states.

    A matrix whose weights err by e (relative norm, independently) gives a product that errs by e.
    The errors of M matrices are independent, so they add up to at most e * sqrt(M) where none of
    them is weakened on its way to the end.
    """
    weight_error = {"int8": 0.0065, "int4": 0.09}[request.param]  # tests/unit/nn/test_quantized

    def quantize(model: UnifiedModel) -> float:
        return weight_error * math.sqrt(len(quantize_backbone(model, request.param)))

    return quantize
