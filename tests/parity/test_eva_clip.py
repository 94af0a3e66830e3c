"""The EVA-CLIP tower and its preprocessing against recorded values (family `eva_clip`)."""

from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from blip3o.imaging.pixels import CLIP_MEAN, CLIP_STD, normalize_for_clip, to_pixels
from blip3o.models.encoders.eva_clip import EvaClipEncoder, EvaClipEncoderConfig
from blip3o.weights.keymaps.blip3o_qwen import NAMES

FEATURE_TOLERANCE = 1e-4
PREPROCESS_TOLERANCE = 1e-5
STATISTIC_TOLERANCE = 1e-5  # for means and standard deviations of channels

each_case = pytest.mark.parity_cases("eva_clip/*_weights.safetensors")
each_preprocessing = pytest.mark.parity_cases("eva_clip/preprocess*.json")


def config_from(recorded: dict[str, Any]) -> EvaClipEncoderConfig:
    assert recorded["postnorm"]
    assert recorded["qkv_bias"]
    assert not recorded["drop_path_rate"]
    return EvaClipEncoderConfig(
        image_px=recorded["image_size"],
        patch_px=recorded["patch_size"],
        hidden_size=recorded["width"],
        intermediate_size=int(recorded["width"] * recorded["mlp_ratio"]),
        num_layers=recorded["layers"],
        num_heads=recorded["width"] // recorded["head_width"],
    )


def to_ours(published: dict[str, Any]) -> dict[str, Any]:
    """Returns the weights of the released file under the names of the encoder."""
    front = "model.gen_vision_tower.vision_tower.model."  # prefix in a full checkpoint
    own = {NAMES.ours(front + name): value for name, value in published.items()}
    return {name.removeprefix("image_encoder."): v for name, v in own.items() if name is not None}


def load(case: Any) -> EvaClipEncoder:
    encoder = config_from(case.settings()["vision_cfg"]).build()
    encoder.load_state_dict(to_ours(case.tensors()), strict=True)
    return encoder.eval()


def assert_near(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


@each_case
def test_sizes_equal_recorded_sizes(case: Any) -> None:
    settings = case.settings()
    config = config_from(settings["vision_cfg"])
    assert config.intermediate_size == settings["mlp_hidden"]
    assert config.num_heads == settings["heads"]
    assert config.norm_eps == settings["norm_eps"]


@each_case
def test_features_equal_recorded_features(case: Any) -> None:
    encoder, recorded = load(case), case.tensors("features")
    with torch.no_grad():
        features = encoder.tower(recorded["pixels"])
    assert list(features.shape) == case.settings()["features_shape"]
    assert_near(features, recorded["features"], FEATURE_TOLERANCE)


@each_case
def test_block_outputs_equal_recorded_outputs(case: Any) -> None:
    encoder, recorded = load(case), case.tensors("features")
    names = [name for name in recorded if name.endswith("_output_with_cls")]
    assert names
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda _module, _inputs, output: seen.update({name: output})

    for name in names:
        number = int(name.removeprefix("block").removesuffix("_output_with_cls"))
        encoder.tower.blocks[number].register_forward_hook(keep(name))
    with torch.no_grad():
        encoder.tower(recorded["pixels"])
    for name in names:
        assert_near(seen[name], recorded[name], FEATURE_TOLERANCE)


@each_case
def test_encoder_normalizes_pixels_itself(case: Any) -> None:
    encoder, recorded = load(case), case.tensors("features")
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    plain = (recorded["pixels"] * std + mean) * 2 - 1
    with torch.no_grad():
        assert_near(encoder(plain), recorded["features"], FEATURE_TOLERANCE)


@pytest.mark.parity_cases("manifests/eva_clip_*.json")
def test_published_names_shapes_and_count(case: Any, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = case.settings()
    published = EvaClipEncoderConfig.published()
    with torch.device("meta"):
        encoder = published.build()
    state = encoder.state_dict()
    shapes = {name: list(value.shape) for name, value in state.items()}
    assert shapes == to_ours(manifest["weights"])
    assert len(state) == manifest["n_tensors"]
    count = sum(value.numel() for value in state.values())
    assert count == manifest["n_params"]
    assert sum(parameter.numel() for parameter in encoder.parameters()) == count
    with capsys.disabled():
        print(f"\n{case.path.stem}: {count:,} parameters")  # noqa: T201
    recorded = config_from(manifest["config"])
    assert {**vars(recorded), "pool": published.pool} == vars(published)


@each_preprocessing
def test_preprocessing_equals_recorded_pixels(case: Any) -> None:
    settings, recorded = case.settings(), RecordedTensors(case)
    assert (tuple(settings["mean"]), tuple(settings["std"])) == (CLIP_MEAN, CLIP_STD)
    for number, entry in enumerate(settings["images"]):
        # The released code drops the alpha channel; `imaging.load` blends with white instead.
        image = Image.open(case.path.with_name(entry["file"])).convert("RGB")
        for size in entry["sizes"]:
            pixels = normalize_for_clip(to_pixels(image, size, "center_crop"))
            recorded.compare(f"image_{number}_size{size}", pixels)
    recorded.assert_all_compared()


class RecordedTensors:
    """Recorded pixels: all of them, or every k-th pixel and the statistics of the channels."""

    def __init__(self, case: Any) -> None:
        self.tensors = type(case)(case.path.with_suffix(".safetensors")).tensors()
        self.left = set(self.tensors)

    def compare(self, name: str, pixels: Tensor) -> None:
        found = [key for key in self.tensors if key == name or key.startswith(f"{name}_")]
        assert found, name
        for key in found:
            expected, detail = self.tensors[key], key.removeprefix(name)
            if detail == "_channel_mean_std":
                statistics = torch.stack([pixels.mean((1, 2)), pixels.std((1, 2))])
                assert_near(statistics, expected, STATISTIC_TOLERANCE)
            elif detail:
                step = int("".join(filter(str.isdigit, detail)))
                assert_near(pixels[:, ::step, ::step], expected, PREPROCESS_TOLERANCE)
            else:
                assert_near(pixels, expected, PREPROCESS_TOLERANCE)
            self.left.discard(key)

    def assert_all_compared(self) -> None:
        assert not self.left
