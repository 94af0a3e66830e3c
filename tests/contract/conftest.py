"""A second generator, only for tests: one transformer that reads prompts and draws.

Its plan is the keys and values of the prompts; its velocity is a pass of noisy tokens through the
backbone's own layers, which see the prompt and all of the image. It knows nothing of query tokens
and of a DiT, so it shows whether the seam between reading and drawing bears other generators.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from blip3o.models.backbones.cache import KeyValueCache
from blip3o.models.generators import GENERATORS
from blip3o.models.generators.patch_unet import PatchUNetConfig
from blip3o.models.generators.plan import Generator, GeneratorConfig, Joints, Plan
from blip3o.models.prompts import Prompts
from blip3o.models.unified import SamplingConfig, UnifiedModel, UnifiedModelConfig
from blip3o.text.chat import ChatConfig
from blip3o.text.tokenizer import Tokenizer, train_tokenizer

NAME = "one_transformer"


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneTransformerConfig:
    """Has no sizes of its own; all sizes are those of the neighbors."""

    kind: str = NAME
    takes_reference: ClassVar[bool] = False
    is_guided: ClassVar[bool] = True

    @classmethod
    def tiny(cls) -> Self:
        return cls()

    def num_reserved_positions(self, joints: Joints) -> int:
        return joints.grid**2

    def check(self, joints: Joints) -> None:
        del joints

    def build(self, joints: Joints) -> "OneTransformer":
        return OneTransformer(self, joints)


class OneTransformer(Generator):
    seams: ClassVar[tuple[str, ...]] = ("velocity",)

    def __init__(self, config: OneTransformerConfig, joints: Joints) -> None:
        super().__init__()
        self.config = config
        self.patch_in = nn.Linear(joints.feature_channels + 1, joints.backbone_size)
        self.patch_out = nn.Linear(joints.backbone_size, joints.feature_channels)

    def plan(self, backbone: Any, prompts: Prompts, **options: bool) -> "CachePlan":
        del options
        cache, mask = backbone.new_cache(), prompts.attention_mask
        backbone(backbone.embed(prompts.input_ids, prompts.images), mask, cache)
        return CachePlan(self, backbone, mask, cache.key_values())

    def velocity(self, noisy: Tensor, sigma: Tensor, plan: "CachePlan") -> Tensor:
        rows, length = noisy.shape[:2]
        levels = sigma.to(noisy)[:, None, None].expand(rows, length, 1)
        hidden = self.patch_in(torch.cat([noisy, levels], dim=-1))
        cache = KeyValueCache(plan.pairs)
        positions = plan.mask.sum(1, keepdim=True) + torch.arange(length, device=noisy.device)
        return self.patch_out(plan.backbone.block_states(hidden, plan.mask, cache, positions))

    def empty_plan(self, backbone: Any, num_prompts: int, prompt_tokens: int) -> "CachePlan":
        cache = backbone.new_cache()
        embeds = self.patch_in.weight.new_empty(
            num_prompts, prompt_tokens, self.patch_in.out_features
        )
        mask = torch.ones(num_prompts, prompt_tokens, dtype=torch.bool, device=embeds.device)
        backbone.block_states(embeds, mask[:, :0], cache, mask.cumsum(1), is_causal=True)
        return CachePlan(self, backbone, mask, cache.key_values())


@dataclasses.dataclass(eq=False)
class CachePlan(Plan):
    generator: OneTransformer
    backbone: Any
    mask: Tensor
    pairs: tuple[tuple[Tensor, Tensor], ...]

    def __len__(self) -> int:
        return len(self.mask)

    def null(self) -> Self:
        return self.dropped(torch.ones(len(self), dtype=torch.bool))

    def dropped(self, is_dropped: Tensor) -> Self:
        return dataclasses.replace(self, mask=self.mask & ~is_dropped[:, None])

    def select(self, rows: Tensor) -> Self:
        return self.with_tensors([tensor[rows] for tensor in self.tensors()])

    @classmethod
    def join(cls, plans: Sequence[Self]) -> Self:
        most = max(plan.num_tokens for plan in plans)
        rows = [plan.padded(most).tensors() for plan in plans]
        return plans[0].with_tensors([torch.cat(same) for same in zip(*rows, strict=True)])

    @property
    def num_tokens(self) -> int:
        return self.mask.shape[1]

    def padded(self, num_tokens: int) -> Self:
        front = num_tokens - self.num_tokens
        pads = [functional.pad(one, (0, 0, front, 0)) for one in self.tensors()[1:]]
        return self.with_tensors([functional.pad(self.mask, (front, 0)), *pads])

    def velocity(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        return self.generator.velocity(noisy, sigma, self)

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.mask, *(one for pair in self.pairs for one in pair))

    def with_tensors(self, tensors: Sequence[Tensor]) -> Self:
        mask, *rest = tensors
        pairs = tuple(zip(rest[::2], rest[1::2], strict=True))
        return dataclasses.replace(self, mask=mask, pairs=pairs)


@pytest.fixture(autouse=True)
def _one_more_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry of the second generator in the table."""
    monkeypatch.setitem(GENERATORS._table, NAME, f"{__name__}:OneTransformerConfig")


_UNET = PatchUNetConfig(hidden_size=16, num_blocks=1, num_heads=2)
VARIANTS: dict[str, tuple[dict[str, object], ...]] = {
    "query_dit": (
        {"reads": "prompt", "num_query_tokens": 0},
        {"reads": "layers", "num_query_tokens": 0, "num_layers": 3, "fresh_gates": "open"},
    ),
    "regression": ({"num_layers": 0},),
    "transfusion": (
        {"prediction": "noise", "positions": "shared"},
        {"patch_size": 2, "unet": _UNET},
    ),
    "lmfusion": ({"unet": _UNET, "learned_positions": False},),
}
"""Changes of a generator's `tiny()` config that give its other forms, held to the same contract."""


def _forms() -> list[tuple[str, dict[str, object]]]:
    names = [*GENERATORS.names(), NAME]
    return [(name, changes) for name in names for changes in ({}, *VARIANTS.get(name, ()))]


def _form_id(form: tuple[str, dict[str, object]]) -> str:
    name, changes = form
    return "-".join([name, *(str(value) for value in changes.values())])


@pytest.fixture(params=_forms(), ids=_form_id)
def generator_config(request: pytest.FixtureRequest) -> GeneratorConfig:
    """Every form of every generator of the table, and the second generator."""
    name, changes = request.param
    return dataclasses.replace(GENERATORS.get(name).tiny(), **changes)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["draw: a red cat", "edit: a dog and a cat", "user\n"] * 3, 300)


@pytest.fixture
def model(generator_config: GeneratorConfig, tokenizer: Tokenizer) -> UnifiedModel:
    """The tiny model with the generator; random weights, because fresh gates may be zero."""
    tiny = UnifiedModelConfig.tiny()
    scale = 2.0 if generator_config.is_guided else 1.0
    config = dataclasses.replace(
        tiny,
        backbone=dataclasses.replace(
            tiny.backbone, image_token_id=tokenizer.image_pad_id, max_positions=96
        ),
        generator=generator_config,
        chat=ChatConfig(system=None, generate="draw: {caption}", edit="edit: {instruction}"),
        sampling=SamplingConfig(guidance_scale=scale, num_inference_steps=3, num_decoder_steps=2),
    )
    torch.manual_seed(0)
    model = config.build().eval()
    for part in (model.generator, model.image_decoder):
        for parameter in part.parameters():
            nn.init.normal_(parameter, std=0.3)
    for parameter in model.backbone.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    return model
