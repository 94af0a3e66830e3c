import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from blip3o.core.errors import UsageError
from blip3o.eval.clip import (
    CLIPSCORE_PREFIX,
    OPENAI_VIT_L_14,
    ClipEncoder,
    clip_pixels,
    clip_scores,
    load_clip,
    scaled,
)

SIDE_PX = 28
WORDS = ("a", "photo", "of", "red", "green", "cat", "depicts")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random CLIP, as transformers writes it."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    letters = sorted({letter for word in WORDS for letter in word})
    merges, pieces = [], [*letters, *(f"{letter}</w>" for letter in letters)]
    for word in WORDS:  # each word becomes one token
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            if (pair := (parts[0], parts[1])) not in merges:
                merges.append(pair)
            parts[:2] = ["".join(pair)]
            pieces.append(parts[0])
    names = list(dict.fromkeys([*pieces, "<|startoftext|>", "<|endoftext|>"]))
    vocab = {name: number for number, name in enumerate(names)}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges)
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    torch.manual_seed(0)
    end = vocab["<|endoftext|>"]
    model = CLIPModel(
        CLIPConfig(
            vision_config={"hidden_size": 8, "image_size": SIDE_PX, "patch_size": 14, **sizes},
            text_config={
                **{"hidden_size": 8, "vocab_size": len(vocab), "max_position_embeddings": 10},
                **{"eos_token_id": end, "bos_token_id": end - 1, "pad_token_id": end, **sizes},
            },
            projection_dim=6,
        )
    )
    for weight in model.parameters():  # of usual size, so that inputs change outputs
        torch.nn.init.normal_(weight, std=0.5)
    folder = tmp_path_factory.mktemp("clip")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(folder: Path) -> ClipEncoder:
    return load_clip(folder, name="tiny", device="cpu")


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(levels)


def test_embeddings_are_those_of_transformers(folder: Path, encoder: ClipEncoder) -> None:
    from transformers import CLIPModel, CLIPTokenizer

    model, tokenizer = CLIPModel.from_pretrained(folder), CLIPTokenizer.from_pretrained(folder)
    texts = ["a photo of a red cat", "green"]
    images = [noise(40, 31, 1), noise(28, 60, 2)]
    tokens = tokenizer(texts, padding=True, return_tensors="pt")
    pixels = torch.stack([clip_pixels(image, SIDE_PX) for image in images])
    with torch.no_grad():
        output = model(**tokens, pixel_values=pixels)
    found = [encoder.embed_images(images), encoder.embed_texts(texts)]
    for values, wanted in zip(found, (output.image_embeds, output.text_embeds), strict=True):
        normalized = values / np.linalg.norm(values, axis=1, keepdims=True)
        np.testing.assert_allclose(normalized, wanted, rtol=0, atol=1e-6)
    assert encoder.name.startswith("tiny-")
    assert len(encoder.name) == len("tiny-") + 8


def test_scores_have_the_stated_scale(encoder: ClipEncoder) -> None:
    images = [noise(30, 30, seed) for seed in range(5)]
    texts = ["red cat", "green cat", "a photo", "photo of a cat", "cat " * 20]
    cosines, num_cut = clip_scores(encoder, images, texts, batch_size=2)
    assert num_cut == 1
    assert all(-1 <= one <= 1 for one in cosines)
    assert len(set(cosines)) == 5
    seen, said = encoder.embed_images(images[:1])[0], encoder.embed_texts(texts[:1])[0]
    expected = seen @ said / np.linalg.norm(seen) / np.linalg.norm(said)
    assert cosines[0] == pytest.approx(expected, abs=1e-6)
    read = [CLIPSCORE_PREFIX + text for text in texts]
    paper = clip_scores(encoder, images, texts, scale="2.5", prefix=CLIPSCORE_PREFIX).scores
    assert paper == [scaled(one, "2.5") for one in clip_scores(encoder, images, read).scores]
    assert [scaled(one, "2.5") for one in (0.5, -0.5)] == [1.25, 0]
    assert [scaled(one, "100") for one in (0.5, -0.5)] == [50, 0]
    assert [scaled(one, "cosine") for one in (0.5, -0.5)] == [0.5, -0.5]
    with pytest.raises(ValueError, match="5 images, but 1 texts"):
        clip_scores(encoder, images, texts[:1])


@pytest.mark.parametrize("size", [(224, 224), (640, 427), (301, 1000), (100, 57), (16, 1000)])
def test_pixels_are_those_of_a_resize_and_a_centered_crop(size: tuple[int, int]) -> None:
    image = noise(*size)
    short = min(size)
    width, height = (int(224 * side / short) for side in size)
    full = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (round((side - 224) / 2) for side in full.size)
    levels = np.asarray(full, np.float32)[top : top + 224, left : left + 224] / 255
    mean = np.array((0.48145466, 0.4578275, 0.40821073), np.float32)
    std = np.array((0.26862954, 0.26130258, 0.27577711), np.float32)
    expected = ((levels - mean) / std).transpose(2, 0, 1)
    np.testing.assert_allclose(clip_pixels(image), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(3, 401), (401, 3)])
def test_the_middle_of_a_very_thin_image_is_that_of_the_whole(size: tuple[int, int]) -> None:
    x, y = np.meshgrid(*(np.linspace(20, 230, side) for side in size))
    image = Image.fromarray(np.stack([x, y, (x + y) / 2], axis=-1).astype(np.uint8))
    full = image.resize((28 * size[0] // 3, 28 * size[1] // 3), Image.Resampling.BICUBIC)
    left, top = (round((side - 28) / 2) for side in full.size)
    crop = full.crop((left, top, left + 28, top + 28))
    level = 1 / 255 / 0.26
    np.testing.assert_allclose(
        clip_pixels(image, 28), clip_pixels(crop, 28), rtol=0, atol=1.1 * level
    )


def test_pixels_need_rgb() -> None:
    with pytest.raises(ValueError, match="an RGB image is needed, got L"):
        clip_pixels(Image.new("L", (30, 30)))


def test_another_clip_needs_a_name(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"not OpenAI's CLIP ViT-L/14: vision_config.hidden_size"):
        load_clip(folder, name=OPENAI_VIT_L_14)


def test_published_sizes_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(published_config()))
    with pytest.raises(UsageError, match=r"model\.safetensors is missing"):  # after the sizes
        load_clip(tmp_path)
    changed = published_config()
    changed["vision_config"]["hidden_act"] = "gelu"
    (tmp_path / "config.json").write_text(json.dumps(changed))
    with pytest.raises(UsageError, match=r"vision_config.hidden_act is gelu, not quick_gelu"):
        load_clip(tmp_path)


def published_config() -> dict[str, Any]:
    text: dict[str, Any] = {"hidden_size": 768, "intermediate_size": 3072}
    text |= {"num_attention_heads": 12, "num_hidden_layers": 12, "hidden_act": "quick_gelu"}
    vision: dict[str, Any] = {"hidden_size": 1024, "intermediate_size": 4096, "patch_size": 14}
    vision |= {"num_attention_heads": 16, "num_hidden_layers": 24, "hidden_act": "quick_gelu"}
    return {
        "model_type": "clip",
        "projection_dim": 768,
        "text_config": text,
        "vision_config": vision | {"image_size": 224},
    }


def test_incomplete_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"config.json is missing"):
        load_clip(tmp_path, name="tiny")
    (tmp_path / "config.json").write_text('{"model_type": "siglip"}')
    with pytest.raises(UsageError, match="not the config of a CLIP model"):
        load_clip(tmp_path, name="tiny")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    tensors = load_file(folder / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match=r"missing: visual_projection\.weight"):
        load_clip(tmp_path, name="tiny")
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(UsageError, match="tokenizer"):
        load_clip(tmp_path, name="tiny")


def test_the_name_tells_weights_apart(folder: Path, encoder: ClipEncoder, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert load_clip(tmp_path, name="tiny", device="cpu").name == encoder.name
    tensors = load_file(folder / "model.safetensors")
    tensors["logit_scale"] += 1
    tensors["vision_model.embeddings.position_ids"] = torch.arange(5)[None]  # as in old files
    save_file(tensors, tmp_path / "model.safetensors")
    assert load_clip(tmp_path, name="tiny", device="cpu").name != encoder.name
