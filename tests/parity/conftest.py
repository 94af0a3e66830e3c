"""Finds the recorded inputs and outputs of the released system for the tests.

A test marked `parity_cases(pattern)` runs once for every recorded file that matches the pattern,
and receives it as the argument `case`. `without=TEXT` excludes names that contain a text. A pattern
without a match is an error, so a missing family of cases is always noticed.
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

from blip3o.core.choices import QUANTIZATIONS
from blip3o.models.decoders.pocket import PocketDecoderConfig
from blip3o.models.dit.nextdit import NextDiTConfig
from blip3o.models.encoders.siglip2 import Siglip2EncoderConfig
from blip3o.models.generators.query_dit import QueryDiTConfig
from blip3o.models.quantize import quantize_backbone
from blip3o.models.unified import SamplingConfig, UnifiedModel, UnifiedModelConfig
from blip3o.weights.keymaps import blip3o_qwen, blip3o_qwen3

_DEFAULT_FOLDER = Path(__file__).parent.parent / "data" / "parity"


@dataclasses.dataclass(frozen=True)
class RecordedCase:
    """One recorded file, and the files with the same beginning of the name next to it.

    Args:
        path: file that matches the pattern of the test.
    """

    path: Path

    def tensors(self, ending: str | None = None) -> dict[str, Tensor]:
        """Returns the tensors of a file; those stored in fp16 without loss become fp32.

        Args:
            ending: "forward" selects the file NAME_forward next to NAME_weights; None selects the
                file of the case.
        """
        values = load_file(
            self.path if ending is None else self._with_ending(f"_{ending}.safetensors")
        )
        half = torch.float16
        return {name: v.float() if v.dtype == half else v for name, v in values.items()}

    def settings(self) -> dict[str, Any]:
        """Returns the JSON of the case: its own file, or NAME.json next to NAME_weights."""
        path = self.path if self.path.suffix == ".json" else self._with_ending(".json")
        return json.loads(path.read_text(encoding="utf-8"))

    def neighbor(self, name: str) -> "RecordedCase":
        """Returns the case of another file in the same folder."""
        return RecordedCase(self.path.with_name(name))

    def _with_ending(self, ending: str) -> Path:
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
    """Returns a function that converts a recorded config to ours."""
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
    """Returns a function that builds a model with recorded sizes and weights."""

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
            image_encoder=Siglip2EncoderConfig(  # only its shape matters, as features are recorded
                image_px=token_px * dit.grid,
                patch_px=token_px,
                hidden_size=channels,
                intermediate_size=4,
                num_layers=1,
                num_heads=1,
            ),
            generator=QueryDiTConfig(
                num_query_tokens=num_queries,
                hidden_size=dit.hidden_size,
                num_layers=dit.num_layers,
                num_heads=dit.num_heads,
                num_kv_heads=dit.num_kv_heads,
                patch_size=dit.patch_size,
                multiple_of=dit.multiple_of,
                ffn_dim_multiplier=dit.ffn_dim_multiplier,
                norm_eps=dit.norm_eps,
            ),
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
    """Returns a function that prints a measured relative error and its bound."""

    def say(name: str, error: float, bound: float) -> None:
        with capsys.disabled():
            print(f"\n{request.node.name}: {name}: relative error {error:.2%}, bound {bound:.2%}")  # noqa: T201

    return say


@pytest.fixture(params=QUANTIZATIONS)
def quantized(request: pytest.FixtureRequest) -> Callable[[UnifiedModel], float]:
    """Returns a function that quantizes a backbone and bounds the relative error of its states.

    Independent relative errors e in the weights of a matrix give a relative error e in its product.
    The errors of M matrices are independent, so their sum is at most e * sqrt(M), which is reached
    if no later layer attenuates them.
    """
    weight_error = {"int8": 0.0065, "int4": 0.09}[request.param]  # tests/unit/nn/test_quantized

    def quantize(model: UnifiedModel) -> float:
        return weight_error * math.sqrt(len(quantize_backbone(model, request.param)))

    return quantize
