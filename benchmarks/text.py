"""Measures the tokens of answers: one answer, eight answers together, and the reading of weights.

A token of one answer reads all weights of the backbone once, so no path is faster than `floor`: one
product of each weight with a vector, in the type of the model. `one` streams an answer to a text
question. `eight` answers questions of different lengths about images together. Models have random
weights and cannot end an answer, so every answer has the same number of tokens; the prompts are
included. `bundled` is the bundled model of the commit, with answers that it cannot end either.

The pocket backbone is newer than some commits, which take Qwen3 of the same sizes instead: it is
the same network (`tests/unit/models/test_pocket_backbone.py`).
"""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from measure import Case, CaseFunction, Options, main
from options import FOLDER
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from blip3o.core.types import Message
from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.models.backbones import BACKBONES
from blip3o.models.unified import UnifiedModelConfig
from blip3o.text.tokenizer import Tokenizer

TOKENS = 64
QUESTION = "What is in the image, and what is left of it?"
QUESTIONS = tuple(QUESTION[: 5 + 5 * number] for number in range(8))
SIZES: dict[int, dict[str, int]] = {
    32: {"hidden_size": 32, "intermediate_size": 64, "num_layers": 2, "head_dim": 16},
    256: {"hidden_size": 256, "intermediate_size": 704, "num_layers": 5, "head_dim": 32},
    1024: {"hidden_size": 1024, "intermediate_size": 3072, "num_layers": 8, "head_dim": 64},
}
"""Sizes by width; 256 is the bundled model of 2026-11-30."""


def random_model(width: int, kind: str, device: torch.device) -> Blip3oPipeline:
    """Returns a pipeline in which only the backbone is not tiny."""
    torch.manual_seed(0)
    sizes, tiny = SIZES[width], UnifiedModelConfig.tiny()
    tokenizer = Tokenizer.load(FOLDER.parent / "src/blip3o/pocket")
    heads = sizes["hidden_size"] // sizes["head_dim"]
    is_pocket = kind == "pocket" and kind in BACKBONES.names()
    backbone = BACKBONES.get("pocket" if is_pocket else "qwen3")(
        **sizes,
        **({"rotary_dim": sizes["head_dim"]} if is_pocket else {"rope_theta": 10_000.0}),
        vocab_size=tokenizer.vocab_size,
        num_heads=heads,
        num_kv_heads=heads,
        image_token_id=tokenizer.image_pad_id,
        image_channels=tiny.backbone.image_channels,
    )
    parts: dict[str, Any] = {"backbone": backbone}
    old_dit = getattr(tiny, "dit", None)  # commits before generators
    if old_dit is not None:
        parts["dit"] = dataclasses.replace(old_dit, condition_size=width)
    model = dataclasses.replace(tiny, **parts).build()
    return Blip3oPipeline(model.to(device), tokenizer)


def bundled(device: torch.device) -> Blip3oPipeline:
    """Returns the bundled model."""
    return Blip3oPipeline.from_pretrained("pocket", device=str(device), dtype="fp32")


@torch.no_grad()
def never_end(pipe: Blip3oPipeline) -> None:
    """Gives the tokens that end an answer a logit of 0, which is never the largest."""
    table = pipe.model.backbone.decoder.embed_tokens.weight
    for token in (pipe.chat_template.turn_end_id, pipe.tokenizer.pad_id):
        table[token] = 0.0


def weights(pipe: Blip3oPipeline) -> list[Tensor]:
    """Returns the weights that a token reads, the vocabulary head once."""
    decoder = pipe.model.backbone.decoder
    linear = [layer.weight for layer in decoder.modules() if isinstance(layer, nn.Linear)]
    return [weight.detach() for weight in (*linear, decoder.embed_tokens.weight)]


def case(
    build: Callable[[torch.device], Blip3oPipeline], dtype: torch.dtype, options: Options
) -> Iterator[Case]:
    """Answers of a model with one type of weights."""
    pipe = build(options.device)
    pipe.model.to(dtype)
    never_end(pipe)
    read, tokens = weights(pipe), options.pick(TOKENS, 4)
    vectors = [torch.randn(1, weight.shape[1]).to(weight) for weight in read]
    image = Image.new("RGB", (96, 96), "red")

    @torch.no_grad()
    def floor() -> None:
        for _ in range(tokens):
            for weight, vector in zip(read, vectors, strict=True):
                functional.linear(vector, weight)

    def one() -> str:
        messages = [Message(role="user", text=QUESTION)]
        return "".join(pipe.stream(messages, max_new_tokens=tokens))

    def eight() -> list[str]:
        return pipe.answer_batch([image] * len(QUESTIONS), QUESTIONS, max_new_tokens=tokens)

    yield Case(
        unit="token",
        work={"floor": tokens, "one": tokens, "eight": tokens * len(QUESTIONS)},
        variants={"floor": floor, "one": one, "eight": eight},
        facts={"weights_mb": sum(weight.nbytes for weight in read) / 2**20, "dtype": str(dtype)},
    )


def sized(width: int, kind: str, dtype: torch.dtype, options: Options) -> Iterator[Case]:
    """Answers of a model of a width."""
    build = partial(random_model, options.pick(width, min(SIZES)), kind)
    yield from case(build, dtype, options)


CASES: dict[str, CaseFunction] = {
    "256_wide": partial(sized, 256, "pocket", torch.float32),
    "256_wide_bf16": partial(sized, 256, "pocket", torch.bfloat16),
    "256_wide_qwen3": partial(sized, 256, "qwen3", torch.float32),
    "1024_wide": partial(sized, 1024, "pocket", torch.float32),
    "1024_wide_bf16": partial(sized, 1024, "pocket", torch.bfloat16),
    "bundled": partial(case, bundled, torch.float32),
}


if __name__ == "__main__":
    main(__doc__, CASES)
