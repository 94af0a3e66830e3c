"""Measures training steps of the generation stage with our savings off and on.

All variants are our own code; this repository has no code of the original program. `plain` has the
savings switched off and does the same work as the original: the gradient flows through the whole
prompt of the frozen backbone, vocabulary logits of the prompts are computed and discarded, and the
image encoder runs in every step. `saved` omits the first two; `saved_and_cached` also reads the
image features instead of computing them. Cases named `features` read them in both variants.
`prompts` compares padded prompts of several lengths with a backbone that skips the padding. All
variants of a case use the same batch and noise, and losses and gradients must agree.

The gain depends on two shares, which the results include. The logits have the same share as in the
released 8B: about 8 % of the computation of the backbone's layers. The share of the image encoder
is small in `256_wide` and `512_wide`. `released` is a narrow version of the released 8B with its
ratios of widths and nearly its encoder share, which is 59 % of a plain step there.
"""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from measure import Case, CaseFunction, Options, main
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from blip3o.core.config import evolve
from blip3o.core.types import Batch
from blip3o.flow.sigmas import UniformSigmas
from blip3o.models.backbones.qwen2_5_vl import Qwen2_5VLBackboneConfig
from blip3o.models.backbones.qwen3 import Qwen3BackboneConfig
from blip3o.models.decoders.pocket import PocketDecoderConfig
from blip3o.models.encoders.eva_clip import EvaClipEncoderConfig
from blip3o.models.encoders.normalizer import FeatureNormalizerConfig
from blip3o.models.generators.query_dit import QueryDiTConfig
from blip3o.models.unified import UnifiedModelConfig
from blip3o.objectives.flow_matching import FlowMatchingConfig

PATCH_PX, GRID, IMAGE_TOKEN = 8, 8, 5
NUM_QUERIES = 64  # published
PROMPT_TOKENS = 160  # a long caption of about 120 tokens and the chat template
BATCH = 4
PLAIN = {"prompt_gradient": True, "text_weight": 0.0}
RAGGED_PROMPTS = (160, 120, 80, 40)  # number of tokens in each row
TOLERANCE = 1e-5


def logits_share(backbone: Qwen3BackboneConfig | Qwen2_5VLBackboneConfig) -> float:
    """Returns the computation of the vocabulary logits relative to that of the layers."""
    width = backbone.hidden_size
    is_qwen3 = isinstance(backbone, Qwen3BackboneConfig)
    head_dim = backbone.head_dim if is_qwen3 else width // backbone.num_heads
    attention = 2 * (backbone.num_heads + backbone.num_kv_heads) * head_dim * width
    layer = attention + 3 * width * backbone.intermediate_size
    return backbone.vocab_size * width / (backbone.num_layers * layer)


RELEASED = Qwen2_5VLBackboneConfig.published_8b()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """Sizes of a model for a CPU; DiT and encoder are half as wide as the backbone, as published.

    The vocabulary has the size at which the logits have the same share as in the released 8B.

    Args:
        width: width of the backbone.
        feed_forward: feed-forward width of the backbone, in widths of the backbone.
        layers: number of layers of backbone, image encoder and DiT.
        encoder_feed_forward: feed-forward width of the encoder, in widths of the encoder.
        pool: side of the squares of patches that are pooled into one feature.
    """

    width: int
    feed_forward: float = 3.0
    layers: tuple[int, int, int]
    encoder_feed_forward: float = 4.0
    pool: int = 2

    @property
    def image_px(self) -> int:
        """Returns the side of images in pixels."""
        return self.pool * GRID * PATCH_PX

    def config(self) -> UnifiedModelConfig:
        """Returns the config of the model."""
        width, half = self.width, self.width // 2
        backbone_layers, encoder_layers, dit_layers = self.layers
        backbone = Qwen3BackboneConfig(
            vocab_size=1,
            hidden_size=width,
            intermediate_size=round(self.feed_forward * width),
            num_layers=backbone_layers,
            num_heads=width // 64,
            num_kv_heads=max(1, width // 256),
            head_dim=64,
            image_token_id=IMAGE_TOKEN,
            image_channels=half,
        )
        vocabulary = round(logits_share(RELEASED) / logits_share(backbone))
        return UnifiedModelConfig(
            backbone=dataclasses.replace(backbone, vocab_size=vocabulary),
            image_encoder=EvaClipEncoderConfig(
                image_px=self.image_px,
                patch_px=PATCH_PX,
                hidden_size=half,
                intermediate_size=round(self.encoder_feed_forward * half),
                num_layers=encoder_layers,
                num_heads=half // 64,
                pool=self.pool,
            ),
            normalizer=FeatureNormalizerConfig(num_components=None),
            generator=QueryDiTConfig(
                num_query_tokens=NUM_QUERIES,
                hidden_size=half,
                num_layers=dit_layers,
                num_heads=half // 64,
                multiple_of=32,
            ),
            image_decoder=dataclasses.replace(
                PocketDecoderConfig.tiny(), feature_channels=half, grid=GRID, image_px=8 * GRID
            ),
        )


SIZES = {
    "256_wide": Size(width=256, layers=(6, 4, 6)),
    "512_wide": Size(width=512, layers=(8, 5, 8)),
    "released": Size(
        width=512,
        feed_forward=RELEASED.intermediate_size / RELEASED.hidden_size,
        layers=(7, 28, 6),  # with 28 : 64 : 24, the share of the narrow encoder would be smaller
        encoder_feed_forward=15_360 / 1792,
        pool=3,  # with the released 4, attention would be half, as it does not shrink with width
    ),
}


QUICK = Size(width=128, layers=(1, 1, 1))


class Step(NamedTuple):
    """Loss of a training step and the gradients of the trainable parameters by name."""

    loss: Tensor
    gradients: dict[str, Tensor]


class Setting:
    """One model with the trainable parts of the generation stage, and one batch in three forms.

    Args:
        size: sizes of the model.
        device: device of the model.
    """

    def __init__(self, size: Size, device: torch.device) -> None:
        torch.manual_seed(0)
        config = size.config()
        self.model = config.build().eval().to(device)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name.startswith("generator."))
            if name.startswith("generator.dit.") and parameter.ndim == 1:  # fresh gates are zero
                torch.nn.init.normal_(parameter, std=0.1)
        pixels = torch.rand(BATCH, 3, size.image_px, size.image_px) * 2 - 1
        self.online = Batch(
            task="text_to_image",
            indices=torch.arange(BATCH),
            epochs=torch.zeros(BATCH, dtype=torch.int64),
            input_ids=torch.randint(10, config.backbone.vocab_size, (BATCH, PROMPT_TOKENS)),
            attention_mask=torch.ones(BATCH, PROMPT_TOKENS, dtype=torch.bool),
            target_pixels=pixels,
        ).to(device)
        with torch.no_grad():
            features = self.model.encode_images(pixels.to(device))
        self.cached = dataclasses.replace(self.online, target_features=features)
        places = torch.arange(PROMPT_TOKENS, 0, -1, device=device)
        is_real = places <= torch.tensor(RAGGED_PROMPTS, device=device).unsqueeze(1)
        self.ragged = dataclasses.replace(self.cached, attention_mask=is_real)

    def step(
        self, batch: Batch, settings: dict[str, float], *, is_padding_free: bool = False
    ) -> Step:
        """Runs a forward and a backward pass.

        Args:
            batch: one form of the batch.
            settings: settings of the objective.
            is_padding_free: whether the backbone skips padding.
        """
        self.model.backbone.padding_free = is_padding_free
        objective = evolve(FlowMatchingConfig(sigmas=UniformSigmas()), settings)
        self.model.zero_grad(set_to_none=True)
        output = objective.build(self.model.config)(self.model, batch, 0)
        loss = output.loss_sum / output.count
        loss.backward()
        named = self.model.named_parameters()
        return Step(loss.detach(), {name: p.grad for name, p in named if p.grad is not None})

    def shares(self) -> dict[str, float]:
        """Returns the shares of the encoder in a plain step and of the logits in the backbone."""
        with FlopCounterMode(display=False) as whole:
            self.step(self.online, PLAIN)
        with FlopCounterMode(display=False) as rest:
            self.step(self.cached, PLAIN)
        backbone = self.model.config.backbone
        assert isinstance(backbone, Qwen3BackboneConfig)
        return {
            "encoder_share_of_arithmetic": 1 - rest.get_total_flops() / whole.get_total_flops(),
            "logits_share_of_backbone": logits_share(backbone),
        }


def difference(expected: Step, got: Step) -> float:
    """Returns the largest relative difference of loss and gradients.

    For gradients, this is the largest difference in a tensor over the tensor's largest value. For
    tensors that are zero except for rounding, the divisor is a thousandth of the largest value of
    all tensors.
    """
    assert got.gradients.keys() == expected.gradients.keys()
    floor = 1e-3 * max(gradient.abs().max() for gradient in expected.gradients.values())
    ratios = [
        float((got.gradients[name] - one).abs().max() / one.abs().max().clamp_min(floor))
        for name, one in expected.gradients.items()
    ]
    return max(*ratios, float((got.loss - expected.loss).abs() / expected.loss))


def _variants(setting: Setting, kind: str) -> dict[str, Callable[[], Step]]:
    step, cached, ragged = setting.step, setting.cached, setting.ragged
    if kind == "prompts":
        return {
            "padded": lambda: step(ragged, {}),
            "packed": lambda: step(ragged, {}, is_padding_free=True),
        }
    if kind == "features":
        return {"plain": lambda: step(cached, PLAIN), "saved": lambda: step(cached, {})}
    return {
        "plain": lambda: step(setting.online, PLAIN),
        "saved": lambda: step(setting.online, {}),
        "saved_and_cached": lambda: step(cached, {}),
    }


def steps(size: Size, kind: str, options: Options) -> Iterator[Case]:
    """Training steps of one size."""
    setting = Setting(options.pick(size, QUICK), options.device)
    yield Case(
        unit="image",
        work=BATCH,
        variants=_variants(setting, kind),
        difference=difference,
        tolerance=TOLERANCE,
        has_memory=True,
        facts={} if kind else setting.shares(),
    )


CASES: dict[str, CaseFunction] = {
    "_".join([name, *filter(None, [kind])]): partial(steps, size, kind)
    for name, size in SIZES.items()
    for kind in ("", "features", "prompts")
}

if __name__ == "__main__":
    main(__doc__, CASES)
