"""Generators that draw with a language model's layers: an image is a block of tokens.

A prompt is a block of text, and the plan keeps its keys and values. The noisy image is a second
block: its tokens attend to the prompt and to each other. Later blocks see earlier ones whole and
never the other way, so this is the mask of Transfusion without a 2-D mask and without routing of
tokens. Axes: P prompts, T prompt tokens, N feature tokens, M image tokens (patches), K feature
channels, D width.

Reference:
    Transfusion (arXiv 2408.11039) and LMFusion (arXiv 2412.15188); parity family `transfusion`.
"""

import abc
import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from blip3o.core.bounds import Count
from blip3o.flow.path import noise_to_velocity, to_ddpm
from blip3o.flow.sigmas import NUM_TIMESTEPS
from blip3o.models.backbones.base import Backbone
from blip3o.models.backbones.cache import KeyValueCache, KeyValues
from blip3o.models.backbones.ragged import RowCache
from blip3o.models.dit.nextdit import from_patches, to_patches
from blip3o.models.generators.patch_unet import PatchUNet, PatchUNetConfig, Skips
from blip3o.models.generators.plan import Generator, Joints, Plan, RowOutput
from blip3o.models.generators.rows import read_rows, start_row
from blip3o.models.prompts import Prompts, Rows
from blip3o.nn.embedding import TimestepEmbedding

MAX_NOISE_LEVEL = 0.986
"""Highest level at which predicted noise becomes a velocity: t = 990 of DDPM's cosine schedule.

The conversion multiplies errors by 1 / (1 - sigma): 71 here, 20,000 at the schedule's last step.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """Settings of image blocks; all widths follow from the neighbors.

    Args:
        patch_size: side of the square of feature tokens that forms one image token.
        unet: sizes of a U-Net between features and patches; None for linear patch layers.
        positions: rotary positions of image tokens: "sequential" counts on after the prompt,
            "shared" gives all tokens of an image one position, "grid" counts rows and columns after
            the prompt on axes of their own, for backbones with such axes.
        learned_positions: add a learned embedding of its place to each image token; without it,
            shared positions cannot tell image tokens apart.
        prediction: output of the network. "noise" is DDPM's choice and that of the papers: the
            network reads the sample on DDPM's scale, and the loss is the squared error of the
            noise. It goes with the distribution and the schedule "cosine" of `flow.sigmas`.
    """

    patch_size: Count = 1
    unet: PatchUNetConfig | None = None
    positions: Literal["sequential", "shared", "grid"] = "sequential"
    learned_positions: bool = True
    prediction: Literal["velocity", "noise"] = "velocity"

    @classmethod
    def tiny(cls) -> Self:
        """Returns the smallest useful config, for tests."""
        return cls()

    @property
    def takes_reference(self) -> bool:
        """An image to edit is read through the prompt only."""
        return False

    @property
    def is_guided(self) -> bool:
        """A hidden prompt is the empty one of guidance."""
        return True

    def num_reserved_positions(self, joints: Joints) -> int:
        """Returns the number of image tokens."""
        return (joints.grid // self.patch_size) ** 2

    def check(self, joints: Joints) -> None:
        """Checks that patches fill the grid, and that the backbone has axes for their positions.

        Raises:
            ValueError: if not.
        """
        if joints.grid % self.patch_size:
            raise ValueError(
                f"grid {joints.grid} must be a multiple of patch_size {self.patch_size}"
            )
        if self.positions == "grid" and joints.backbone.num_axes == 1:
            raise ValueError(
                f"positions grid needs a backbone whose positions have rows and columns; "
                f"{joints.backbone.kind} counts tokens only"
            )


class BlockGenerator(Generator):
    """The ends of an image block: patches of noisy features in, patches of predictions out.

    Args:
        config: settings of blocks.
        joints: sizes of the neighbors.
    """

    # Drawing uses the backbone inside these methods, so offloading keeps both until they return.
    seams: ClassVar[tuple[str, ...]] = ("draw_block", "read_block")
    appends_images: ClassVar[bool] = True

    def __init__(self, config: BlockConfig, joints: Joints) -> None:
        super().__init__()
        self.block = config
        self.grid = (joints.grid, joints.grid)
        width, patch = joints.backbone_size, joints.feature_channels * config.patch_size**2
        self.unet: PatchUNet | None = None
        if config.unet is not None:
            self.unet = PatchUNet(config.unet, joints.feature_channels, config.patch_size, width)
            patch = config.unet.hidden_size
        self.patch_in = nn.Linear(patch, width)
        self.time = TimestepEmbedding(width)
        self.places: nn.Parameter | None = None
        if config.learned_positions:
            num_tokens = config.num_reserved_positions(joints)
            self.places = nn.Parameter(torch.empty(num_tokens, width))
            nn.init.normal_(self.places, std=0.02)
        self.patch_out = nn.Linear(width, patch)
        if self.unet is None:  # its own last layer is zero
            nn.init.zeros_(self.patch_out.weight)
            nn.init.zeros_(self.patch_out.bias)

    def plan(
        self,
        backbone: Backbone[Any],
        prompts: Prompts,
        *,
        prompt_gradient: bool = False,
        keep_states: bool = False,
    ) -> "BlockPlan":
        """Returns the plan of prompts: their keys and values in every layer."""
        skip = backbone.is_frozen and not prompt_gradient
        cache, mask = KeyValueCache(), prompts.attention_mask
        with torch.no_grad() if skip else contextlib.nullcontext():
            states = backbone(backbone.embed(prompts.input_ids, prompts.images), mask, cache)
        start = mask.sum(1)
        return BlockPlan(
            self, backbone, mask, start, cache.key_values(), states if keep_states else None
        )

    def read_rows(
        self,
        backbone: Backbone[Any],
        rows: Rows,
        noisy: Tensor,
        sigma: Tensor,
        is_dropped: Tensor,
        *,
        keep_states: bool = False,
    ) -> RowOutput:
        """See `Generator`. Text and images see the noisy images before them, as blocks."""
        return read_rows(self, backbone, rows, noisy, sigma, is_dropped, keep_states=keep_states)

    def start_row(
        self, backbone: Backbone[Any], rows: Rows, clean: Tensor
    ) -> tuple[RowCache, Tensor]:
        """See `Generator`. The drawn images are read as clean blocks."""
        return start_row(self, backbone, rows, clean)

    def plan_row(self, backbone: Backbone[Any], row: RowCache) -> "BlockPlan":
        """See `Generator`. The row's keys and values are the plan."""
        pairs = row.key_values()
        visible = torch.ones(1, row.num_tokens, dtype=torch.bool, device=pairs[0][0].device)
        start = torch.tensor([row.position], device=visible.device)
        return BlockPlan(self, backbone, visible, start, pairs)

    def keep_image(self, backbone: Backbone[Any], row: RowCache, clean: Tensor) -> RowCache:
        """See `Generator`."""
        cache = KeyValueCache(row.key_values())
        stop = self.read_block(backbone, cache, row.position, clean)
        return RowCache.of(cache.key_values(), stop - cache.num_tokens)

    def read_block(
        self, backbone: Backbone[Any], cache: KeyValueCache, start: int, clean: Tensor
    ) -> int:
        """Appends a clean image [1, N, K] to the cache of one row.

        Args:
            backbone: read the row.
            cache: keys and values of everything before the image.
            start: the image's first rotary position.
            clean: its normalized features.

        Returns:
            The position after the image.
        """
        hidden, _ = self.enter(clean, clean.new_zeros(1, dtype=torch.float32))
        positions = self.positions(torch.tensor([start], device=clean.device), hidden.shape[1])
        visible = torch.ones(1, cache.num_tokens, dtype=torch.bool, device=clean.device)
        self.block_states(backbone, hidden, visible, cache, positions)
        return start + self.span(hidden.shape[1])

    def draw_block(self, plan: "BlockPlan", noisy: Tensor, sigma: Tensor) -> Tensor:
        """Returns the velocity of a plan; see `Plan.velocity`."""
        hidden, skips = self.enter(noisy, sigma)
        cache = KeyValueCache(plan.key_values)
        positions = self.positions(plan.start, hidden.shape[1])
        states = self.block_states(plan.backbone, hidden, plan.visible, cache, positions)
        return self.leave(states, skips)

    @abc.abstractmethod
    def block_states(
        self,
        backbone: Backbone[Any],
        hidden: Tensor,
        visible: Tensor,
        cache: KeyValueCache,
        positions: Tensor,
    ) -> Tensor:
        """Returns the states of image tokens; arguments as for `Backbone.block_states`."""

    def enter(self, noisy: Tensor, sigma: Tensor) -> tuple[Tensor, Skips]:
        """Returns the image tokens [P, M, D] of noisy features [P, N, K] at noise levels [P].

        Also returns the tensors that `leave` needs, each with a row for each image.
        """
        sigma = self._level(sigma)
        skips: Skips = (noisy, sigma)
        if self.block.prediction == "noise":
            noisy = to_ddpm(noisy.float(), sigma)
        noisy = noisy.to(self.patch_in.weight.dtype)
        level = self.time(NUM_TIMESTEPS * sigma.float())
        if self.unet is None:
            patches = to_patches(noisy, self.grid, self.block.patch_size)
        else:
            patches, maps = self.unet.enter(noisy, level, self.grid)
            skips += maps
        hidden = self.patch_in(patches) + level.unsqueeze(1)
        return hidden if self.places is None else hidden + self.places, skips

    def leave(self, states: Tensor, skips: Skips) -> Tensor:
        """Returns velocities [P, N, K] of the states of image tokens [P, M, D]."""
        noisy, sigma, *maps = skips
        predicted = self.patch_out(states)
        if self.unet is None:
            predicted = from_patches(predicted, self.grid, self.block.patch_size)
        else:
            predicted = self.unet.leave(predicted, tuple(maps))
        if self.block.prediction == "velocity":
            return predicted
        return noise_to_velocity(predicted.float(), noisy.float(), sigma)

    def loss_weight(self, sigma: Tensor) -> Tensor:
        """See `Generator`. An error of the noise is 1 - sigma times that of the velocity."""
        if self.block.prediction == "velocity":
            return super().loss_weight(sigma)
        return (1 - self._level(sigma)).square()

    def _level(self, sigma: Tensor) -> Tensor:
        """Returns the noise levels that the network reads and that convert its output.

        A network that predicts noise knows nothing of the image at pure noise. Its highest level
        is therefore `MAX_NOISE_LEVEL`, in training as in sampling.
        """
        return sigma if self.block.prediction == "velocity" else sigma.clamp_max(MAX_NOISE_LEVEL)

    def positions(self, start: Tensor, length: int) -> Tensor:
        """Returns the rotary positions of an image that begins at positions [P].

        They are [P, M], or [3, P, M] for the rule "grid": time, row and column.
        """
        steps = torch.arange(length, device=start.device)
        if self.block.positions == "grid":
            side = self.grid[1] // self.block.patch_size
            axes = torch.stack([0 * steps, steps // side, steps % side])
            return start[None, :, None] + axes.unsqueeze(1)
        return start.unsqueeze(1) + (steps if self.block.positions == "sequential" else 0 * steps)

    def span(self, length: int) -> int:
        """Returns the number of rotary positions that an image of some tokens occupies."""
        if self.block.positions == "grid":
            return self.grid[0] // self.block.patch_size
        return length if self.block.positions == "sequential" else 1

    def empty_plan(
        self, backbone: Backbone[Any], num_prompts: int, prompt_tokens: int
    ) -> "BlockPlan":
        """See `Generator.empty_plan`. The backbone gives the sizes of keys and values."""
        embeds = self.patch_in.weight.new_empty(
            num_prompts, prompt_tokens, self.patch_in.out_features
        )
        cache = KeyValueCache()
        visible = embeds.new_ones(num_prompts, prompt_tokens, dtype=torch.bool)
        positions = visible.cumsum(1)
        backbone.block_states(embeds, visible[:, :0], cache, positions, is_causal=True)
        return BlockPlan(self, backbone, visible, visible.sum(1), cache.key_values())


@dataclasses.dataclass(eq=False)
class BlockPlan(Plan):
    """Keys and values of P prompts.

    Args:
        generator: draws from them.
        backbone: read the prompts.
        visible: True for the prompt tokens that the image attends to, bool [P, T].
        start: the position after each prompt, [P].
        key_values: keys and values of each layer, [P, num_kv_heads, T, head dim].
        backbone_states: see `Plan`.
    """

    generator: BlockGenerator
    backbone: Backbone[Any]
    visible: Tensor
    start: Tensor
    key_values: KeyValues
    backbone_states: Tensor | None = None

    def __len__(self) -> int:
        """Returns the number of prompts (P)."""
        return len(self.visible)

    def null(self) -> Self:
        """See `Plan`. All of the prompt is hidden, the mark of its image included."""
        return dataclasses.replace(self, visible=torch.zeros_like(self.visible))

    def dropped(self, is_dropped: Tensor) -> Self:
        """See `Plan`."""
        return dataclasses.replace(self, visible=self.visible & ~is_dropped.unsqueeze(1))

    def select(self, rows: Tensor) -> Self:
        """See `Plan`."""
        rows = rows.to(self.visible.device)
        return self.with_tensors([tensor[rows] for tensor in self.tensors()])

    @classmethod
    def join(cls, plans: Sequence[Self]) -> Self:
        """See `Plan`. Shorter prompts are padded on the left and their padding is hidden."""
        longest = max(plan.num_tokens for plan in plans)
        rows = [plan.padded(longest).tensors() for plan in plans]
        return plans[0].with_tensors([torch.cat(same) for same in zip(*rows, strict=True)])

    @property
    def num_tokens(self) -> int:
        """See `Plan`."""
        return self.visible.shape[1]

    def padded(self, num_tokens: int) -> Self:
        """See `Plan`."""
        front = num_tokens - self.num_tokens
        visible = nn.functional.pad(self.visible, (front, 0))
        pads = [nn.functional.pad(one, (0, 0, front, 0)) for one in self.tensors()[2:]]
        return self.with_tensors([visible, self.start, *pads])

    def velocity(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        """See `Plan`."""
        return self.generator.draw_block(self, noisy, sigma).to(noisy.dtype)

    def tensors(self) -> tuple[Tensor, ...]:
        """See `Plan`."""
        return (self.visible, self.start, *(one for pair in self.key_values for one in pair))

    def with_tensors(self, tensors: Sequence[Tensor]) -> Self:
        """See `Plan`."""
        visible, start, *rest = tensors
        pairs = tuple(zip(rest[::2], rest[1::2], strict=True))
        return dataclasses.replace(
            self, visible=visible, start=start, key_values=pairs, backbone_states=None
        )
