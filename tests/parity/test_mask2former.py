"""The detector of GenEval against mmdetection's own outputs (`mask2former`)."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from blip3o.eval.detectors.mask2former import Mask2FormerConfig, Mask2FormerDetector
from blip3o.eval.detectors.mask2former_network import Mask2FormerSizes
from blip3o.eval.detectors.mmdet_findings import findings
from blip3o.eval.detectors.mmdet_image import PreparedImage, prepare

MEAN = torch.tensor([123.675, 116.28, 103.53])[:, None, None]
STD = torch.tensor([58.395, 57.12, 57.375])[:, None, None]

each_model = pytest.mark.parity_cases("mask2former/*_weights.safetensors")


def formula(width: int, height: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    channels = [7 * x + 3 * y, x * x // 5 + 11 * y, 40 * (x // 9) + 90 * (y // 7)]
    return (np.stack(channels, axis=-1) % 256).astype(np.uint8)


def sizes_of(recorded: dict[str, Any]) -> Mask2FormerSizes:
    swin, head = recorded["swin"], recorded["head"]
    assert (swin["mlp_ratio"], swin["qkv_bias"], swin["patch_size"]) == (4, True, 4)
    assert (head["feature_levels"], head["points"], head["group_norm_groups"]) == (3, 4, 32)
    assert head["feat_channels"] == head["out_channels"]
    return Mask2FormerSizes(
        swin_channels=swin["embed_dims"],
        swin_layers=tuple(swin["depths"]),
        swin_heads=tuple(swin["num_heads"]),
        window=swin["window_size"],
        hidden_size=head["feat_channels"],
        num_heads=head["num_heads"],
        pixel_layers=head["encoder_layers"],
        pixel_intermediate_size=head["encoder_ffn"],
        query_layers=head["decoder_layers"],
        query_intermediate_size=head["decoder_ffn"],
        num_queries=head["num_queries"],
        num_classes=head["num_classes"],
    )


def build(case: Any, folder: Path) -> Mask2FormerDetector:
    """Returns the detector, loaded from a file in the form of mmdetection's checkpoints."""
    config = case.settings()["config"]
    held = {"meta": {"epoch": 50}, "state_dict": case.tensors(), "optimizer": {"state": {}}}
    torch.save(held, folder / "model.pth")
    return Mask2FormerConfig(
        weights=str(folder / "model.pth"),
        sizes=sizes_of(config),
        longest=max(config["img_scale"]),
        shortest=min(config["img_scale"]),
        max_findings=config["max_per_image"],
    ).build("cpu")


def images_of(case: Any) -> list[Image.Image]:
    images = case.settings()["images"]
    assert images
    return [Image.open(case.path.with_name(one["file"])) for one in images]


def in_order(labels: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Returns the order of findings by class and score, as the recorded order is no order."""
    return np.lexsort((rows[:, 4], labels))


@each_model
def test_images_are_prepared_as_recorded(case: Any) -> None:
    outputs, settings = case.tensors("outputs"), case.settings()
    longest, shortest = settings["config"]["img_scale"]
    for number, (image, recorded) in enumerate(
        zip(images_of(case), settings["images"], strict=True)
    ):
        found = prepare(image, longest, shortest)
        assert list(found.original) == recorded["ori_shape"]
        assert list(found.inner) == recorded["img_shape"]
        assert list(found.pixels.shape[1:]) == recorded["pad_shape"]
        expected = outputs[f"image_{number}.pixels"]
        off = ((found.pixels - expected) * STD).abs()
        assert off.max() < 1.001  # levels
        assert (off > 0.5).float().mean() < 0.15


@each_model
def test_logits_equal_recorded_ones(case: Any, tmp_path: Path) -> None:
    outputs = case.tensors("outputs")
    network = build(case, tmp_path)._network
    for number in range(len(images_of(case))):
        pixels = outputs[f"image_{number}.pixels"]
        classes, masks = network(pixels[None])
        for found, name, bound in ((classes, "class_logits", 1e-4), (masks, "mask_logits", 5e-4)):
            expected = next(v for k, v in outputs.items() if k.startswith(f"image_{number}.{name}"))
            torch.testing.assert_close(found[0], expected, rtol=0, atol=bound)


@each_model
def test_findings_equal_recorded_ones(case: Any, tmp_path: Path) -> None:
    outputs, images = case.tensors("outputs"), images_of(case)
    found_in = build(case, tmp_path).detect(images)
    for number, (found, image) in enumerate(zip(found_in, images, strict=True)):
        labels = outputs[f"image_{number}.labels"].numpy()
        rows = outputs[f"image_{number}.boxes_and_scores"].numpy()
        masks = outputs[f"image_{number}.masks"].numpy().astype(bool)
        assert found.masks is not None
        assert found.masks.shape[1:] == (image.height, image.width)
        found_rows = np.concatenate([found.boxes, found.scores[:, None]], axis=1)
        ours, theirs = in_order(found.labels, found_rows), in_order(labels, rows)
        assert found.labels[ours].tolist() == labels[theirs].tolist()
        assert found.boxes[ours].tolist() == rows[theirs, :4].tolist()
        np.testing.assert_allclose(found.scores[ours], rows[theirs, 4], rtol=0, atol=1e-5)
        assert (found.masks[ours] != masks[theirs]).sum(axis=(1, 2)).max() <= 2


@pytest.mark.parity_cases("mask2former/preprocess.json")
def test_levels_equal_recorded_ones_at_real_size(case: Any) -> None:
    levels = case.neighbor(f"{case.path.stem}.safetensors").tensors()
    rows, config = case.settings(), Mask2FormerConfig(weights="")
    assert rows
    for number, row in enumerate(rows):
        image = Image.fromarray(formula(row["width"], row["height"]))
        found = prepare(image, config.longest, config.shortest)
        assert list(found.inner) == row["img_shape"]
        assert list(found.pixels.shape[1:]) == row["pad_shape"]
        ours = found.pixels * STD + MEAN
        expected = levels[f"preprocess_{number}.levels_every_13"].float()
        off = (ours[:, ::13, ::13].round() - expected).abs()
        assert off.max() <= 1
        assert (off > 0).float().mean() < 0.001  # a fixed-point resize reaches 0.03 %
        assert ours.mean((1, 2)).tolist() == pytest.approx(row["mean_level"], abs=0.01)
        for place, name in ((0, "pixel_0_0_normalized"), (-1, "last_pixel_normalized")):
            recorded = row[name]
            assert found.pixels[:, place, place].tolist() == pytest.approx(recorded, abs=1e-5)


@pytest.mark.parity_cases("mask2former/postprocess.json")
def test_findings_of_recorded_logits_equal_recorded_ones(case: Any) -> None:
    recorded = case.neighbor(f"{case.path.stem}.safetensors").tensors()
    rows = case.settings()
    assert rows
    for number, row in enumerate(rows):
        of = {
            k.partition(".")[2]: v for k, v in recorded.items() if k.startswith(f"post_{number}.")
        }
        image = PreparedImage(
            torch.zeros(3, *row["padded"]), tuple(row["img_shape"]), tuple(row["ori_shape"])
        )
        found = findings(of["class_logits"], of["mask_logits"], image, row["max_per_image"])
        labels, boxes = of["labels"].numpy(), of["boxes_and_scores"].numpy()
        found_rows = np.concatenate([found.boxes, found.scores[:, None]], axis=1)
        ours, theirs = in_order(found.labels, found_rows), in_order(labels, boxes)
        assert found.labels[ours].tolist() == labels[theirs].tolist()
        assert found.boxes[ours].tolist() == boxes[theirs, :4].tolist()
        np.testing.assert_allclose(found.scores[ours], boxes[theirs, 4], rtol=0, atol=1e-5)
        assert found.masks is not None
        pixels = found.masks.sum(axis=(1, 2))[ours]
        assert np.abs(pixels - of["mask_pixels"].numpy()[theirs]).max() <= 2
