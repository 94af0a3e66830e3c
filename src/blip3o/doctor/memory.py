"""Computes a model's memory needs by precision, quantization and offloading, without allocating it.

Weights are counted exactly on the meta device, with quantized layers and the groups of layers that
offloading moves. Activations are estimated: each component runs once on the meta device for one
image with guidance, and the live results of its operations are added up. The workspace of kernels
is not included.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from weakref import WeakSet, finalize

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from blip3o.core.choices import QUANTIZATIONS, Quantization
from blip3o.generate.offload import COMPONENTS, OFFLOADS, Offload, groups_of, residents_of
from blip3o.generate.placement import move
from blip3o.models.absent import AbsentPart
from blip3o.models.autoencoders import latents_to_pixels
from blip3o.models.backbones.qwen2_5_vl import Qwen2_5VLBackboneConfig
from blip3o.models.decoders.latent_diffusion import LatentDiffusionDecoder
from blip3o.models.protocols import CleanPredictor
from blip3o.models.quantize import quantize_backbone
from blip3o.models.unified import UnifiedModel, UnifiedModelConfig
from blip3o.recipes import qwen2_5_vl
from blip3o.weights.folder import BUNDLED, open_model
from blip3o.weights.names import full_name, short_name, unknown_model

PROMPT_TOKENS = 512
"""Length of the prompt for the estimate of activations."""

RESERVE_BYTES = 2**30
"""Memory reserved for the CUDA context, workspaces and fragmentation of the allocator."""

DRAWING = ("backbone", "generator", "image_decoder")
"""Components that generate an image from a prompt."""

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclasses.dataclass(frozen=True)
class Need:
    """Bytes of device memory that one form of a model needs to generate an image from a prompt.

    Args:
        precision: "fp32", "fp16" or "bf16".
        quantize: quantization of the backbone's matrices; None for none.
        offload: decides which weights are on the device.
        weights: bytes of weights on the device at the peak.
        peak: bytes of weights and activations together at the peak.
    """

    precision: str
    quantize: Quantization | None
    offload: Offload
    weights: int
    peak: int

    @property
    def flags(self) -> str:
        """Options of the command line that select this form."""
        words = ["--dtype", self.precision]
        words += ["--quantize", self.quantize] if self.quantize else []
        words += ["--offload", self.offload] if self.offload != "none" else []
        return " ".join(words)


RELEASED = {
    "blip3o-4b": Qwen2_5VLBackboneConfig.published_4b,
    "blip3o-8b": Qwen2_5VLBackboneConfig.published_8b,
}
"""Backbones of the released models by short name; their sizes are known without any file."""


def config_of(name: str) -> UnifiedModelConfig:
    """Returns a model's config without downloading anything.

    Args:
        name: short name or hub name of a released model, a bundled model, or a model folder.

    Raises:
        UsageError: if the model is unknown or its folder is damaged.
    """
    short = short_name(name)
    if short is None or Path(full_name(name)).exists():
        if name not in BUNDLED and not Path(full_name(name)).exists():
            raise unknown_model(name)
        return open_model(name).config
    return qwen2_5_vl.model(RELEASED[f"blip3o-{short}"]())


def needs_of(config: UnifiedModelConfig) -> list[Need]:
    """Returns a model's memory needs for every precision, quantization and kind of offloading."""
    found: list[Need] = []
    activations: dict[tuple[str, str], int] = {}
    for quantize in (None, *QUANTIZATIONS):
        model = meta_model(config, quantize)
        for precision, dtype in PRECISIONS.items():
            move(model, torch.device("meta"), dtype)
            weights = {offload: weight_bytes(model, offload) for offload in OFFLOADS}
            for name in DRAWING:
                # The decoder is never quantized, so it is measured once for each precision.
                if name != "image_decoder" or (precision, name) not in activations:
                    activations[precision, name] = activation_bytes(model, name)
            for offload, sizes in weights.items():
                peak = max(sizes[name] + activations[precision, name] for name in DRAWING)
                found.append(Need(precision, quantize, offload, max(sizes.values()), peak))
    return found


def choose(
    needs: Iterable[Need], capacity: int, precisions: Sequence[str], *, may_offload: bool = True
) -> tuple[Need, int]:
    """Returns the best form for a device, and the bytes that it lacks there (<= 0 if it fits).

    Offloading whole components costs seconds and changes no result, so it is preferred to
    quantization, which does. Offloading block by block is slowest and comes last. If nothing fits,
    the form with the lowest peak is returned.

    Args:
        needs: the result of `needs_of`.
        capacity: bytes of the device's memory.
        precisions: allowed precisions, the best first.
        may_offload: False if the device shares its memory with the CPU.
    """
    order = (None, *QUANTIZATIONS)

    def rank(need: Need) -> tuple[bool, int, int, int]:
        slow = need.offload == "sequential"
        plain = order.index(need.quantize)
        return slow, plain, OFFLOADS.index(need.offload), precisions.index(need.precision)

    allowed = [
        need
        for need in needs
        if need.precision in precisions and (may_offload or need.offload == "none")
    ]
    room = capacity - RESERVE_BYTES
    fitting = [need for need in allowed if need.peak <= room]
    best = min(fitting, key=rank) if fitting else min(allowed, key=lambda need: need.peak)
    return best, best.peak - room


def meta_model(config: UnifiedModelConfig, quantize: Quantization | None = None) -> UnifiedModel:
    """Returns a model on the meta device, in float32 except for a quantized backbone."""
    with torch.device("meta"):
        model = config.build().eval().requires_grad_(requires_grad=False)
    if quantize:
        quantize_backbone(model, quantize)
    return model


def weight_bytes(model: UnifiedModel, offload: Offload) -> dict[str, int]:
    """Returns the peak bytes of weights on the device while each component runs, by its name.

    Args:
        model: in the precision and quantization of interest; may be on the meta device.
        offload: kind of offloading.
    """
    if offload == "none":
        return dict.fromkeys(DRAWING, _bytes([*model.parameters(), *model.buffers()]))
    resident = [child for name in COMPONENTS for child in residents_of(getattr(model, name))]
    always = _bytes([*model.buffers(), *(p for child in resident for p in child.parameters())])
    sizes: dict[str, int] = {}
    for name in DRAWING:
        groups = groups_of(getattr(model, name), by_block=offload == "sequential")
        rest, *blocks = [
            _bytes(p for module in group for p in module.parameters(recurse=False))
            for group in groups
        ]
        sizes[name] = always + rest + max(blocks, default=0)
    return sizes


@torch.no_grad()
def activation_bytes(model: UnifiedModel, component: str) -> int:
    """Returns the estimated peak bytes of a component's activations.

    Args:
        model: on the meta device.
        component: one of `DRAWING`.
    """
    runs = {"backbone": _run_backbone, "generator": _run_generator, "image_decoder": _run_decoder}
    return max((_peak(run) for run in runs[component](model)), default=0)


def _empty(model: UnifiedModel, *shape: int) -> Tensor:
    return torch.empty(shape, device=model.device, dtype=model.dtype)


def _run_backbone(model: UnifiedModel) -> list[Callable[[], object]]:
    length = PROMPT_TOKENS + model.config.num_reserved_positions
    embeds = _empty(model, 1, length, model.config.backbone.hidden_size)
    # The backbone's own forward reads values of its mask, which the meta device does not have.
    # Without a cache, transformers would read values of the positions.
    return [lambda: model.backbone.decoder(inputs_embeds=embeds, use_cache=True)]


def _run_generator(model: UnifiedModel) -> list[Callable[[], object]]:
    noisy = _empty(model, 2, *model.config.feature_shape)
    plan = model.generator.empty_plan(model.backbone, 2, PROMPT_TOKENS)
    return [lambda: plan.velocity(noisy, noisy.new_empty(2))]


def _run_decoder(model: UnifiedModel) -> list[Callable[[], object]]:
    decoder: object = model.image_decoder
    if isinstance(decoder, AbsentPart):
        return []
    features = model.decoder_features(_empty(model, 2, *model.config.feature_shape))
    noise = _empty(model, 2, *model.config.image_decoder.noise_shape)
    if isinstance(decoder, LatentDiffusionDecoder):
        return [
            lambda: decoder.predict(noise, noise.new_empty(()), features),
            lambda: latents_to_pixels(decoder.vae, noise[:1]),
        ]
    if isinstance(decoder, CleanPredictor):
        return [lambda: decoder.predict_clean(noise[:1], noise.new_empty(1), features[:1])]
    return [lambda: model.image_decoder.decode(features[:1], noise[:1], 1)]


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _peak(run: Callable[[], object]) -> int:
    with _Unfused(), _LiveBytes() as live:
        run()
    return live.peak


class _LiveBytes(TorchDispatchMode):
    """Adds up the memory of all results of operations that are still referenced."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: WeakSet[torch.UntypedStorage] = WeakSet()

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        for storage in _storages((args, kwargs)):
            self._known.add(storage)
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            if storage not in self._known:
                self._known.add(storage)
                self.now += storage.nbytes()
                finalize(storage, self._free, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def _free(self, num_bytes: int) -> None:
        self.now -= num_bytes


class _Unfused(TorchFunctionMode):
    """Makes attention allocate its result only, as fused kernels do."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        if func is functional.scaled_dot_product_attention:
            query, _, value = args[:3]
            assert isinstance(query, Tensor)
            assert isinstance(value, Tensor)
            return query.new_empty(*query.shape[:-1], value.shape[-1])
        return func(*args, **(kwargs or {}))


def _storages(values: object) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
