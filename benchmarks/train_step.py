"""Measures training steps of the generation stage with our savings off and on, in turn.

python benchmarks/train_step.py [--repeats 7] [--threads 2] [--sizes 256_wide 512_wide released]
    [--out benchmarks/results/train_step.json]

All variants are our own code; this repository has no code of the original program. `plain` has the
savings switched off and does the same work as the original: the gradient flows through the whole
prompt of the frozen backbone, vocabulary logits of the prompts are computed and discarded (in the
stored results also those of the query positions), and the image encoder runs in every step. `saved`
omits the first two. `cached` also reads the image features instead of computing them. `ragged` and
`packed` are `cached` with prompts of several lengths, padded and padding-free. All variants use the
same batch and noise, so losses and gradients must agree. Each
ratio is taken within one round of all variants, so a slowdown of the machine affects all of them.

The gain depends on two shares, which the results include. The logits have the same share as in the
released 8B: about 8 % of the computation of the backbone's layers. The share of the image encoder
is small in `256_wide` and `512_wide`. `released` is a narrow version of the released 8B with its
ratios of widths and nearly its encoder share, which is 59 % of a plain step there.
"""

import argparse
import dataclasses
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
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
from blip3o.models.unified import UnifiedModel, UnifiedModelConfig
from blip3o.objectives.flow_matching import FlowMatching, FlowMatchingConfig

COMPARED = {
    "plain_over_saved": "our step with both savings off, over our step with them on",
    "plain_over_cached": "our step with both savings off, over ours that also reads the features",
    "plain_cached_over_cached": "the same two steps, where both read the features",
    "ragged_over_packed": "our step with padded prompts, over ours without padding",
}
"""Numerator and denominator of each ratio; neither is the original program."""

PATCH_PX, GRID, IMAGE_TOKEN = 8, 8, 5
NUM_QUERIES = 64  # published
PROMPT_TOKENS = 160  # a long caption of about 120 tokens and the chat template
BATCH = 4
PLAIN = {"prompt_gradient": True, "text_weight": 0.0}
RAGGED_PROMPTS = (160, 120, 80, 40)  # number of tokens in each row


class Variant(NamedTuple):
    """A variant of a training step.

    Args:
        settings: settings of the objective.
        cached: whether features are read instead of computed.
        ragged: whether prompts have different lengths.
        packed: whether the backbone skips padding.
        reference: variant with the same loss and gradients.
    """

    settings: dict[str, float]
    cached: bool = False
    ragged: bool = False
    packed: bool = False
    reference: str = "plain"


VARIANTS = {
    "plain": Variant(PLAIN),
    "saved": Variant({}),
    "cached": Variant({}, cached=True),
    "plain_cached": Variant(PLAIN, cached=True),  # isolates the gain from reading features
    "ragged": Variant({}, cached=True, ragged=True, reference="ragged"),
    "packed": Variant({}, cached=True, ragged=True, packed=True, reference="ragged"),
}


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


class Setting:
    """One model with the trainable parts of the generation stage, and one batch.

    Args:
        size: sizes of the model.
        device: device of the model.
    """

    def __init__(self, size: Size, device: torch.device) -> None:
        torch.manual_seed(0)
        config = size.config()
        self.device = device
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

    def run(self, variant: str) -> float:
        """Returns the seconds of a forward and a backward pass; the model keeps the gradients."""
        way = VARIANTS[variant]
        objective = _objective(self.model, way.settings)
        batch = self.ragged if way.ragged else self.cached if way.cached else self.online
        self.model.backbone.padding_free = way.packed
        self.model.zero_grad(set_to_none=True)
        _wait(self.device)
        start = time.perf_counter()
        output = objective(self.model, batch, 0)
        (output.loss_sum / output.count).backward()
        self.loss = output.loss_sum.detach() / output.count
        _wait(self.device)
        return time.perf_counter() - start

    def gradients(self) -> dict[str, Tensor]:
        """Returns the gradients of the last run."""
        named = self.model.named_parameters()
        return {name: p.grad.clone() for name, p in named if p.grad is not None}


def _objective(model: UnifiedModel, settings: dict[str, float]) -> FlowMatching:
    return evolve(FlowMatchingConfig(sigmas=UniformSigmas()), settings).build(model.config)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def describe(values: list[float]) -> dict[str, float]:
    """Returns median, minimum and maximum."""
    numbers = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: round(number, 4) for name, number in numbers.items()}


def differences(setting: Setting) -> dict[str, dict[str, float]]:
    """Returns the relative difference between each variant and its reference.

    For gradients, this is the largest difference in a tensor over the tensor's largest value. For
    tensors that are zero except for rounding, the divisor is a thousandth of the largest value of
    all tensors.
    """
    found = {}
    for variant, way in VARIANTS.items():
        setting.run(way.reference)
        loss, gradients = setting.loss, setting.gradients()
        floor = 1e-3 * max(g.abs().max() for g in gradients.values())
        setting.run(variant)
        own = setting.gradients()
        assert own.keys() == gradients.keys()
        ratios = [
            float((own[name] - g).abs().max() / g.abs().max().clamp_min(floor))
            for name, g in gradients.items()
        ]
        found[variant] = {
            "loss": float((setting.loss - loss).abs() / loss),
            "gradient": max(ratios),
        }
    return found


def peak_memory(setting: Setting) -> dict[str, float]:
    """Returns the peak memory of each variant in MiB, including weights; CUDA only."""
    peaks = {}
    for variant in VARIANTS:
        torch.cuda.reset_peak_memory_stats(setting.device)
        setting.run(variant)
        peaks[variant] = round(torch.cuda.max_memory_allocated(setting.device) / 2**20, 1)
    return peaks


def encoder_share(setting: Setting) -> float:
    """Returns the image encoder's share of the operations of a plain step."""
    with FlopCounterMode(display=False) as whole:
        setting.run("plain")
    with FlopCounterMode(display=False) as rest:
        setting.run("plain_cached")
    return round(1 - rest.get_total_flops() / whole.get_total_flops(), 3)


def compare(setting: Setting, repeats: int) -> dict[str, object]:
    """Returns seconds, images per second and ratios of all variants."""
    far = differences(setting)  # also the warm-up
    rounds = [{variant: setting.run(variant) for variant in VARIANTS} for _ in range(repeats)]

    def ratio(slow: str, fast: str) -> dict[str, float]:
        return describe([one[slow] / one[fast] for one in rounds])

    per_second: Callable[[str], dict[str, float]] = lambda variant: describe(  # noqa: E731
        [BATCH / one[variant] for one in rounds]
    )
    backbone = setting.model.config.backbone
    assert isinstance(backbone, Qwen2_5VLBackboneConfig | Qwen3BackboneConfig)
    result: dict[str, object] = {
        "seconds": {v: describe([one[v] for one in rounds]) for v in VARIANTS},
        "images_per_second": {v: per_second(v) for v in VARIANTS},
        "plain_over_saved": ratio("plain", "saved"),
        "plain_over_cached": ratio("plain", "cached"),
        "plain_cached_over_cached": ratio("plain_cached", "cached"),
        "ragged_over_packed": ratio("ragged", "packed"),
        "relative_difference_to_reference": far,
        "encoder_share_of_arithmetic": encoder_share(setting),
        "logits_share_of_backbone": round(logits_share(backbone), 3),
    }
    if setting.device.type == "cuda":
        result["peak_memory_mib"] = peak_memory(setting)
    return result


def main() -> None:
    """Measures all sizes, prints the results and writes them to a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/train_step.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    steps = {}
    for name in options.sizes:
        steps[name] = compare(Setting(SIZES[name], device), options.repeats)
        ratios = {key: value for key, value in steps[name].items() if "over" in key}
        print(name, ratios, steps[name]["relative_difference_to_reference"], flush=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    results = {
        "command": " ".join(["python", *sys.argv]),
        "compared": COMPARED,
        "commit": commit.strip(),
        "machine": f"{machine}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "precision": "fp32",
        "batch_size": BATCH,
        "prompt_tokens": PROMPT_TOKENS,
        "query_tokens": NUM_QUERIES,
        "ragged_prompts": RAGGED_PROMPTS,
        "variants": {name: way._asdict() for name, way in VARIANTS.items()},
        "models": {
            name: {
                part: dataclasses.asdict(getattr(SIZES[name].config(), part))
                for part in ("backbone", "image_encoder", "generator")
            }
            for name in options.sizes
        },
        "steps": steps,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
