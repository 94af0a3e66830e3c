"""GenEval's detector: names of weights, checkpoints, arithmetic and self-tests."""

import contextlib
import dataclasses
import json
import operator
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from torch import Tensor

from blip3o.core.errors import UsageError
from blip3o.eval.detectors import DETECTORS
from blip3o.eval.detectors.arithmetic import check_device, exact
from blip3o.eval.detectors.coco import coco_classes
from blip3o.eval.detectors.mask2former import (
    Mask2FormerConfig,
    Mask2FormerDetector,
    detector_name,
)
from blip3o.eval.detectors.mask2former_network import Mask2FormerNetwork, Mask2FormerSizes
from blip3o.eval.detectors.mask2former_weights import (
    OFFICIAL_FILE,
    Checkpoint,
    convert_checkpoint,
    read_checkpoint,
)
from blip3o.eval.detectors.mmdet_keys import CLASS_WEIGHT, UNUSED, key_map, to_ours, to_published

TINY = Mask2FormerSizes.tiny()


@pytest.fixture(scope="module")
def network() -> Mask2FormerNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        built = TINY.build().eval().requires_grad_(False)
        for parameter in built.parameters():  # the initial values give empty masks
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return built


@pytest.fixture(scope="module")
def state(network: Mask2FormerNetwork) -> dict[str, Tensor]:
    """Weights as a checkpoint of mmdetection holds them."""
    tensors = to_published(network, TINY)
    return {
        name: torch.zeros(one.shape, dtype=one.dtype) if one.is_meta else one
        for name, one in tensors.items()
    }


@pytest.fixture
def write(tmp_path: Path, state: dict[str, Tensor]) -> Callable[..., Path]:
    """Returns a function that writes a checkpoint in the form of mmdetection."""

    def write_changed(changes: dict[str, Tensor | None] | None = None, **others: object) -> Path:
        tensors = {k: v for k, v in (state | (changes or {})).items() if v is not None}
        path = tmp_path / "model.pth"
        torch.save({"meta": {"CLASSES": ("person",)}, "state_dict": tensors, **others}, path)
        return path

    return write_changed


@pytest.fixture
def detector(write: Callable[..., Path]) -> Mask2FormerDetector:
    return Mask2FormerConfig.tiny(str(write())).build("cpu")


def noise(seed: int, width: int = 90, height: int = 60) -> Image.Image:
    levels = np.random.default_rng(seed).integers(0, 256, (height // 10, width // 10, 3))
    return Image.fromarray(levels.astype(np.uint8)).resize((width, height))


def same(first: object, second: object) -> bool:
    arrays = ("labels", "boxes", "scores", "masks")
    return all(np.array_equal(getattr(first, k), getattr(second, k)) for k in arrays)


def test_the_map_reaches_every_parameter_of_the_full_model_once() -> None:
    sizes = Mask2FormerSizes()
    with torch.device("meta"):
        full = sizes.build()
    entries = key_map(sizes)
    for names in ([one.published for one in entries], [n for one in entries for n in one.ours]):
        assert len(set(names)) == len(names)
    published = to_published(full, sizes)
    expected = {name: one.shape for name, one in full.named_parameters() if name not in UNUSED}
    found = {name: one.shape for name, one in to_ours(published, full, sizes).items()}
    assert found == expected
    unread = {"relative_position_index"}
    assert {e.published.rpartition(".")[2] for e in entries if not e.ours} == unread
    shapes = {name: list(one.shape) for name, one in published.items()}
    assert shapes[CLASS_WEIGHT] == [81, 256]
    assert shapes["backbone.stages.2.blocks.17.attn.w_msa.qkv.weight"] == [1152, 384]
    assert shapes["backbone.stages.0.downsample.reduction.weight"] == [192, 384]
    assert shapes["panoptic_head.transformer_decoder.layers.8.ffns.0.layers.0.0.weight"] == [
        2048,
        256,
    ]


def test_loading_restores_every_weight(
    network: Mask2FormerNetwork, write: Callable[..., Path]
) -> None:
    loaded = dict(read_checkpoint(write()).network(TINY).named_parameters())
    for name, parameter in network.named_parameters():
        assert name in UNUSED or torch.equal(loaded[name], parameter), name


def test_loading_changes_no_random_state(write: Callable[..., Path]) -> None:
    path, before = write(), torch.get_rng_state()
    read_checkpoint(path).network(TINY)
    assert torch.equal(torch.get_rng_state(), before)


def test_one_error_lists_all_faults(write: Callable[..., Path]) -> None:
    changes = {
        "backbone.norm0.weight": None,
        "panoptic_head.query_feat.weight": None,
        "backbone.norm9.weight": torch.zeros(8),
        "panoptic_head.cls_embed.bias": torch.zeros(7),
        "backbone.norm1.bias": torch.zeros(16, dtype=torch.int64),
    }
    with pytest.raises(UsageError) as error:
        read_checkpoint(write(changes)).network(TINY)
    for name in changes:
        assert name in str(error.value)
    assert "\n" not in str(error.value)
    assert "[7] instead of [81]" in str(error.value)


def test_a_panoptic_model_is_named(write: Callable[..., Path]) -> None:
    panoptic = {
        CLASS_WEIGHT: torch.zeros(134, 32),
        "panoptic_head.cls_embed.bias": torch.zeros(134),
    }
    with pytest.raises(UsageError, match=f"panoptic model with 133 classes.*{OFFICIAL_FILE}"):
        Mask2FormerConfig.tiny(str(write(panoptic))).build("cpu")


def test_a_file_must_have_the_hash_in_its_name(write: Callable[..., Path]) -> None:
    path = write()
    sha256 = read_checkpoint(path).sha256
    right = path.rename(path.with_name(f"model-{sha256[:8]}.pth"))
    assert read_checkpoint(right).sha256 == sha256
    wrong = right.rename(path.with_name(OFFICIAL_FILE))
    with pytest.raises(UsageError, match=f"begins with {sha256[:8]}, not with 743b7d99"):
        read_checkpoint(wrong)


def test_programs_in_a_pickle_are_refused(write: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match="more than weights"):
        read_checkpoint(write(hook=re.compile("x")))


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"no detector weights at .*{OFFICIAL_FILE}"):
        Mask2FormerConfig(weights=str(tmp_path / "none.pth")).build("cpu")


def test_names_state_the_weights() -> None:
    official = Checkpoint(Path(), OFFICIAL_FILE[-12:-4] + "0" * 56, {})
    other = Checkpoint(Path(), "1234567890" + "0" * 54, {})
    full = Mask2FormerSizes()
    assert detector_name(official, full) == "mask2former-swin-s-743b7d99"
    assert detector_name(other, full) == "mask2former-swin-s@12345678"
    assert detector_name(other, TINY) == "mask2former@12345678"


def test_a_converted_folder_gives_the_same_findings(
    write: Callable[..., Path], tmp_path: Path, detector: Mask2FormerDetector
) -> None:
    folder = tmp_path / "converted"
    convert_checkpoint(write(), folder, TINY)
    converted = Mask2FormerConfig.tiny(str(folder)).build("cpu")
    assert converted.name == detector.name
    (first,), (second,) = detector.detect([noise(0)]), converted.detect([noise(0)])
    assert len(first.labels)
    assert same(first, second)
    with pytest.raises(UsageError, match="not an empty folder"):
        convert_checkpoint(write(), folder, TINY)


def test_a_changed_folder_is_refused(write: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "converted"
    convert_checkpoint(write(), folder, TINY)
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(UsageError, match=r"is not the file that source\.json describes"):
        read_checkpoint(folder)


def test_weights_that_do_not_fit_are_not_converted(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "converted"
    with pytest.raises(UsageError, match=r"missing: backbone\.norm0\.weight"):
        convert_checkpoint(write({"backbone.norm0.weight": None}), folder, TINY)
    assert not folder.exists()


def test_the_table_has_the_detector() -> None:
    assert DETECTORS.get("mask2former") is Mask2FormerConfig
    classes = coco_classes()
    assert len(classes) == 80
    assert classes[64] == "computer mouse"


def test_images_do_not_change_the_findings_of_others(detector: Mask2FormerDetector) -> None:
    images = [noise(0), noise(1, 60, 90), noise(2), noise(3, 100, 40)]
    together = detector.detect(images)
    for image, found in zip(images, together, strict=True):
        assert same(found, detector.detect([image])[0])
        assert found.masks is not None
        assert found.masks.shape == (20, image.height, image.width)
    assert detector.detect([]) == []


def test_a_batch_changes_only_the_last_digits(
    write: Callable[..., Path], detector: Mask2FormerDetector
) -> None:
    config = dataclasses.replace(Mask2FormerConfig.tiny(str(write())), batch_size=3)
    images = [noise(0), noise(1), noise(2, 60, 90), noise(3)]
    found_in = config.build("cpu").detect(images)
    for found, alone in zip(found_in, detector.detect(images), strict=True):
        assert np.abs(np.sort(found.scores) - np.sort(alone.scores)).max() < 1e-4


def test_boxes_enclose_masks_and_scores_fall_with_the_mask(detector: Mask2FormerDetector) -> None:
    (found,) = detector.detect([noise(0)])
    assert found.masks is not None
    is_empty = ~found.masks.any((1, 2))
    assert (found.scores[is_empty] == 0).all()
    assert not is_empty.all()
    for mask, box in zip(found.masks[~is_empty], found.boxes[~is_empty].astype(int), strict=True):
        x0, y0, x1, y1 = box
        assert mask[y0:y1, x0:x1].sum() == mask.sum()
        assert mask[y0].any()
        assert mask[:, x1 - 1].any()


def test_turned_images_are_read_upright(detector: Mask2FormerDetector, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    image = noise(0)
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    turned = Image.open(tmp_path / "turned.png")
    assert same(detector.detect([turned])[0], detector.detect([image])[0])


def test_callers_precision_has_no_effect(detector: Mask2FormerDetector) -> None:
    (expected,) = detector.detect([noise(0)])
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            (found,) = detector.detect([noise(0)])
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert same(found, expected)


BACKENDS: Any = torch.backends  # the stubs lack the new switches


def switches() -> dict[str, object]:
    """Returns torch's switches of precision; the old ones cannot be read beside the new ones."""
    found: dict[str, object] = {"deterministic": torch.backends.cudnn.deterministic}
    for name in ("cuda.matmul", "mkldnn.matmul", "cudnn.conv"):
        found[name] = operator.attrgetter(name)(BACKENDS).fp32_precision
    with contextlib.suppress(RuntimeError):
        found["old"] = (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)
    return found


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="torch before 2.9")
@pytest.mark.parametrize("way", ["default", "old", "new", "new for all"])
def test_tf32_is_off_only_inside(way: str) -> None:
    outside = switches()
    try:
        if way == "old":
            torch.set_float32_matmul_precision("medium")
        elif way == "new":
            torch.backends.cuda.matmul.fp32_precision = "tf32"
        elif way == "new for all":
            BACKENDS.fp32_precision = "tf32"
        before = switches()
        with exact(torch.device("cpu")):
            assert switches() == {
                "deterministic": True,
                "cuda.matmul": "ieee",
                "mkldnn.matmul": "ieee",
                "cudnn.conv": "ieee",
                "old": ("highest", False),
            }
        assert switches() == before
    finally:
        BACKENDS.fp32_precision = "none"
        torch.set_float32_matmul_precision("highest")
        BACKENDS.cuda.matmul.fp32_precision = outside["cuda.matmul"]
        BACKENDS.mkldnn.matmul.fp32_precision = outside["mkldnn.matmul"]
    assert switches() == outside


@pytest.mark.parametrize("faulty", [2, 3])
@pytest.mark.parametrize("factor", [1.001, float("nan")])
def test_a_device_that_computes_otherwise_is_refused(
    network: Mask2FormerNetwork, faulty: int, factor: float
) -> None:
    runs = 0

    def features(module: Mask2FormerNetwork, pixels: Tensor) -> Tensor:
        nonlocal runs
        runs += 1  # the first run is the one on the CPU
        return module.pixel_features(pixels) * (factor if runs == faulty else 1)

    with pytest.raises(UsageError, match="does not compute float32 like the CPU"):
        check_device(network, features, torch.device("cpu"))


def test_the_cpu_computes_like_itself(network: Mask2FormerNetwork) -> None:
    check_device(network, Mask2FormerNetwork.pixel_features, torch.device("cpu"))


@pytest.fixture
def self_test(tmp_path: Path) -> Callable[..., Path]:
    """Returns a function that writes a self-test file."""
    noise(0).save(tmp_path / "known.png")

    def write_file(**content: object) -> Path:
        path = tmp_path / "self_test.json"
        path.write_text(json.dumps({"image": "known.png", **content}))
        return path

    return write_file


def best_score(detector: Mask2FormerDetector) -> tuple[str, float]:
    (found,) = detector.detect([noise(0)])
    best = int(found.scores.argmax())
    return detector.classes[found.labels[best]], float(found.scores[best])


def build_tested(weights: Path, file: Path) -> Mask2FormerDetector:
    config = Mask2FormerConfig.tiny(str(weights))
    return dataclasses.replace(config, self_test=str(file)).build("cpu")


def test_a_passed_self_test_says_nothing(
    write: Callable[..., Path],
    self_test: Callable[..., Path],
    detector: Mask2FormerDetector,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name, score = best_score(detector)
    capsys.readouterr()
    build_tested(write(), self_test(classes=[name], min_score=score - 1e-6))
    assert capsys.readouterr().err == ""


def test_a_failed_self_test_names_expected_and_found_classes(
    write: Callable[..., Path], self_test: Callable[..., Path], detector: Mask2FormerDetector
) -> None:
    name, score = best_score(detector)
    other = next(one for one in detector.classes if one != name)
    with pytest.raises(UsageError) as error:
        build_tested(write(), self_test(classes=[name, other], min_score=score))
    said = str(error.value)
    assert f"expected {name}, {other} with scores of at least {score}" in said
    assert f"found {name} {score:.3f}" in said
    with pytest.raises(UsageError, match="fails the self-test"):
        build_tested(write(), self_test(classes=[name], min_score=score + 1e-6))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"classes": ["mouse"]}, "does not know mouse"),
        ({"classes": []}, "is asked for no class"),
        ({}, "classes is required"),
        ({"classes": ["person"], "image": "none.png"}, "no such image"),
        ({"classes": ["person"], "min_score": 2}, "min_score"),
    ],
)
def test_faulty_self_test_files_are_refused(
    write: Callable[..., Path],
    self_test: Callable[..., Path],
    content: dict[str, object],
    reason: str,
) -> None:
    with pytest.raises(UsageError, match=reason):
        build_tested(write(), self_test(**content))


def test_unknown_weights_without_a_self_test_are_warned_about(
    write: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    Mask2FormerConfig.tiny(str(write())).build("cpu")
    assert "are not the weights that GenEval uses" in capsys.readouterr().err


def test_attention_uses_no_fused_kernel(network: Mask2FormerNetwork) -> None:
    backbone = network.model.pixel_level_module.encoder
    assert backbone.config._attn_implementation == "eager"
