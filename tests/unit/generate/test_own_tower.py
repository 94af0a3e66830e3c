"""The pipeline with a backbone that has its own vision tower."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.models.backbones.llama3 import Llama3BackboneConfig
from blip3o.models.backbones.qwen2_5_vl import Qwen2_5VLBackboneConfig
from blip3o.models.backbones.qwen3 import Qwen3BackboneConfig
from blip3o.models.encoders.siglip2 import Siglip2EncoderConfig
from blip3o.models.unified import UnifiedModelConfig
from blip3o.text.tokenizer import Tokenizer
from blip3o.weights.folder import load_model, save_model

RED, BLUE = (Image.new("RGB", (24, 16), color) for color in ("red", "blue"))


BACKBONES: dict[str, Any] = {
    "tied qwen2_5_vl": dataclasses.replace(
        Qwen2_5VLBackboneConfig.tiny(), tie_word_embeddings=True
    ),
    "untied qwen2_5_vl": Qwen2_5VLBackboneConfig.tiny(),
    "qwen3": dataclasses.replace(
        Qwen3BackboneConfig.tiny(), image_channels=None, vision_tower=Siglip2EncoderConfig.tiny()
    ),
    "llama3": Llama3BackboneConfig.tiny(),
}


@pytest.fixture(scope="module", params=list(BACKBONES))
def pipe(
    request: pytest.FixtureRequest, tiny_config: UnifiedModelConfig, tiny_tokenizer: Tokenizer
) -> Blip3oPipeline:
    backbone = dataclasses.replace(
        BACKBONES[request.param],
        image_token_id=tiny_tokenizer.image_pad_id,
        max_positions=96,
    )
    # Some random models answer only with ids that have no text.
    torch.manual_seed(1)
    model = dataclasses.replace(tiny_config, backbone=backbone).build()
    for part in (model.backbone, model.get_submodule("generator.dit"), model.image_decoder):
        for parameter in part.parameters():
            nn.init.normal_(parameter, std=0.3)
    return Blip3oPipeline(model, tiny_tokenizer)


def test_answers_of_a_batch_are_those_of_each_alone(pipe: Blip3oPipeline) -> None:
    questions = ["What is this?", "a dog"]
    together = pipe.answer_batch([RED, BLUE], questions, max_new_tokens=5)
    alone = [
        pipe.ask(image, text, max_new_tokens=5)
        for image, text in zip((RED, BLUE), questions, strict=True)
    ]
    assert together == alone
    assert any(alone)
    assert pipe.ask(None, "a dog", max_new_tokens=3)


def test_edits_follow_the_image_and_batch(pipe: Blip3oPipeline) -> None:
    def edit(images: list[Image.Image], seeds: list[int]) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        texts = ["make it blue", "red"][: len(images)]
        return pipe.edit(images, texts, generator=generators, output_type="features").images

    both = edit([RED, BLUE], [1, 2])
    torch.testing.assert_close(both[:1], edit([RED], [1]), rtol=0, atol=1e-4)
    assert not torch.allclose(both[:1], edit([BLUE], [1]), atol=1e-4)


def test_a_saved_model_draws_the_same(pipe: Blip3oPipeline, tmp_path: Path) -> None:
    save_model(pipe.model, pipe.tokenizer, tmp_path, torch.float32)
    loaded = load_model(tmp_path)
    again = Blip3oPipeline(loaded.model, loaded.tokenizer)
    first, second = (
        one("a cat", generator=torch.Generator().manual_seed(3), output_type="features").images
        for one in (pipe, again)
    )
    assert torch.equal(first, second)
