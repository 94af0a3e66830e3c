"""A tiny whole model with a tokenizer of its own, as a pipeline and as a folder."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.models.unified import SamplingConfig, UnifiedModelConfig
from blip3o.text.chat import ChatConfig
from blip3o.text.tokenizer import Tokenizer, train_tokenizer
from blip3o.weights.folder import save_model

_TEXTS = (
    "draw: a red cat",
    "edit: make it blue",
    "user\n",
    "assistant\n",
    "What is this? a dog",
) * 3


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Tokenizer:
    """A tokenizer that fits the tiny model's 320 token ids."""
    return train_tokenizer(_TEXTS, 300)


@pytest.fixture(scope="session")
def tiny_config(tiny_tokenizer: Tokenizer) -> UnifiedModelConfig:
    """The tiny model's config, with the tokenizer's placeholder and few steps."""
    tiny = UnifiedModelConfig.tiny()
    return dataclasses.replace(
        tiny,
        backbone=dataclasses.replace(
            tiny.backbone, image_token_id=tiny_tokenizer.image_pad_id, max_positions=96
        ),
        chat=ChatConfig(system=None, generate="draw: {caption}", edit="edit: {instruction}"),
        sampling=SamplingConfig(
            guidance_scale=2.0, num_inference_steps=3, num_decoder_steps=2, max_new_tokens=6
        ),
    )


@pytest.fixture(scope="session")
def tiny_pipe(tiny_config: UnifiedModelConfig, tiny_tokenizer: Tokenizer) -> Blip3oPipeline:
    """A pipeline in which every branch counts: fresh gates and last layers may be zero."""
    torch.manual_seed(0)
    model = tiny_config.build()
    for part in (model.get_submodule("generator.dit"), model.image_decoder):
        for parameter in part.parameters():
            nn.init.normal_(parameter, std=0.2)
    for name, parameter in model.backbone.named_parameters():
        if parameter.ndim > 1:  # otherwise the tied embedding says the last token again and again
            nn.init.normal_(parameter, std=0.1 if "embed" in name else 0.5)
    return Blip3oPipeline(model, tiny_tokenizer)


@pytest.fixture(scope="session")
def tiny_folder(tiny_pipe: Blip3oPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pipeline's model as a folder in float32; copy it before changing it."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    save_model(tiny_pipe.model, tiny_pipe.tokenizer, folder, torch.float32, "# Tiny\n")
    return folder
