"""NextDiT: the diffusion transformer of BLIP3-o, with the weight names of the released models.

The network is Lumina-Next's 2-D DiT with cross-attention to the backbone's query states. Axes:
B batch, N image tokens, C feature channels, Q query tokens, D backbone width, E DiT width, H heads,
K head dim.

Reference:
    BLIP3-o (arXiv 2505.09568) and Lumina-Next (arXiv 2406.18583); numbers are checked against the
    released code by the parity family `dit`.
"""

import dataclasses
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from blip3o.core.bounds import Count, NotNegative, Positive, Whole
from blip3o.models.dit.nextdit_block import KeyValue, NextDiTBlock
from blip3o.models.dit.nextdit_ends import (
    CaptionProjection,
    OutputLayer,
    PatchEmbedder,
    TimeCaptionEmbedding,
)
from blip3o.models.dit.nextdit_inputs import check_shapes, square_grid, timesteps
from blip3o.models.dit.nextdit_sampling import LayerFunction, PreparedNextDiT, sample_layer
from blip3o.models.dit.patches import from_patches, to_patches
from blip3o.nn.rope import RopeTable, grid_rope_table


@dataclasses.dataclass(frozen=True, kw_only=True)
class NextDiTConfig:
    """Sizes of a NextDiT.

    Args:
        in_channels: channels of the features it generates (C).
        condition_size: width of the backbone's query states (D).
        hidden_size: width (E).
        num_layers: transformer layers.
        num_heads: attention heads (H); the head dim must be a multiple of 4.
        num_kv_heads: heads of keys and values; None for as many as query heads.
        grid: feature tokens along one side of the square grid.
        patch_size: side of the square of feature tokens that makes one transformer token.
        multiple_of: the feed-forward width is rounded up to a multiple of this.
        ffn_dim_multiplier: optional factor of the feed-forward width.
        norm_eps: epsilon of the RMS norms; the LayerNorms have one of their own, as published.
        reference_channels: channels of the features of an image to edit; 0 (the released layout)
            for a network that takes none.
    """

    kind: str = "nextdit"
    in_channels: Count
    condition_size: Count
    hidden_size: Count
    num_layers: Count
    num_heads: Count
    num_kv_heads: Count | None = None
    grid: Count = 8
    patch_size: Count = 1
    multiple_of: Count = 256
    ffn_dim_multiplier: Positive | None = None
    norm_eps: NotNegative = 1e-5
    reference_channels: Whole = 0

    def __post_init__(self) -> None:
        if self.hidden_size % (4 * self.num_heads):
            raise ValueError(
                f"hidden_size {self.hidden_size} must be a multiple of 4 * num_heads "
                f"({self.num_heads}): a head splits into pairs for rows and for columns"
            )
        if self.num_heads % self.kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} must be a multiple of num_kv_heads {self.kv_heads}"
            )
        if self.grid % self.patch_size:
            raise ValueError(f"grid {self.grid} must be a multiple of patch_size {self.patch_size}")

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def vector_size(self) -> int:
        """Width of the conditioning vector that modulates every layer."""
        return min(self.hidden_size, 1024)

    @classmethod
    def tiny(cls) -> "NextDiTConfig":
        """Returns the smallest useful config, for tests."""
        return cls(
            in_channels=8,
            condition_size=16,
            hidden_size=16,
            num_layers=2,
            num_heads=2,
            grid=2,
            multiple_of=16,
        )

    @classmethod
    def published(cls, condition_size: int) -> "NextDiTConfig":
        """Returns the sizes of the released models.

        Args:
            condition_size: 2048 for the 4B model, 3584 for the 8B model.
        """
        return cls(
            in_channels=1792,
            condition_size=condition_size,
            hidden_size=1792,
            num_layers=24,
            num_heads=28,
            grid=8,
        )

    def build(self) -> "NextDiT":
        """Returns the network with fresh weights."""
        return NextDiT(self)


@dataclasses.dataclass(frozen=True)
class NextDiTContext:
    """All that a condition means to the network; constant over the steps of a sampler.

    Args:
        pooled: the condition's part of the conditioning vector, [B, vector_size].
        layers: cross-attention keys and values of each layer.
    """

    pooled: Tensor
    layers: tuple[KeyValue, ...]


class NextDiT(nn.Module):
    """Predicts the velocity (noise - clean) of noisy features.

    Args:
        config: sizes.
    """

    def __init__(self, config: NextDiTConfig) -> None:
        super().__init__()
        self.config = config
        self.sample_layer: LayerFunction = sample_layer
        width, area = config.hidden_size, config.patch_size**2
        self.patch_embedder = PatchEmbedder(config.in_channels * area, width)
        self.reference_embedder: nn.Linear | None = None
        if config.reference_channels:
            self.reference_embedder = nn.Linear(config.reference_channels * area, width)
            nn.init.zeros_(self.reference_embedder.weight)  # editing starts as generation
            nn.init.zeros_(self.reference_embedder.bias)
        self.caption_projection = CaptionProjection(config.condition_size, width)
        self.time_caption_embed = TimeCaptionEmbedding(width, config.vector_size)
        self.layers = nn.ModuleList(NextDiTBlock(config) for _ in range(config.num_layers))
        self.norm_out = OutputLayer(width, config.vector_size, config.in_channels * area)

    def forward(self, noisy: Tensor, timestep: Tensor, condition: Tensor) -> Tensor:
        """Returns the velocity in the released form, [B, C, rows, columns].

        Args:
            noisy: noisy features as an image, [B, C, rows, columns]; any grid.
            timestep: 1000 * sigma, float or integer, [B].
            condition: the backbone's query states, [B, Q, D].
        """
        rows, columns = noisy.shape[-2:]
        tokens = noisy.flatten(2).transpose(1, 2)
        velocity = self._run(tokens, timestep, condition, None, None, (rows, columns))
        return velocity.transpose(1, 2).unflatten(2, (rows, columns))

    def velocity(
        self,
        noisy: Tensor,
        sigma: Tensor,
        condition: Tensor,
        context_cache: NextDiTContext | None = None,
        reference: Tensor | None = None,
        *,
        grid: tuple[int, int] | None = None,
        truncate_timestep: bool = False,
    ) -> Tensor:
        """Returns the velocity (noise - clean) at noisy features, [B, N, C].

        Args:
            noisy: features on the path, row-major tokens, [B, N, C].
            sigma: noise levels in [0, 1], fp32, [B].
            condition: the backbone's query states, [B, Q, D]; zeros are the empty condition.
            context_cache: what `prepare_context(condition)` returned; the condition is then not
                looked at.
            reference: features of an image to edit, [B, N, reference_channels].
            grid: rows and columns of the N tokens; None for a square.
            truncate_timestep: round 1000 * sigma down to a whole number, as the released sampler
                does.

        Raises:
            ValueError: if a shape does not fit the network, naming both sides.
        """
        timestep = timesteps(sigma, truncate_timestep)
        grid = grid or square_grid(noisy.shape[1])
        check_shapes(self.config, noisy, condition, reference, grid)
        return self._run(noisy, timestep, condition, context_cache, reference, grid)

    def prepare_context(self, condition: Tensor) -> NextDiTContext:
        """Returns what all sampling steps share: projected condition, keys and values.

        Args:
            condition: the backbone's query states, [B, Q, D].
        """
        context = self.caption_projection(condition.to(self._dtype))
        return NextDiTContext(
            pooled=self.time_caption_embed.pool(context),
            layers=tuple(
                cast("NextDiTBlock", layer).cross_key_value(context) for layer in self.layers
            ),
        )

    def prepare(
        self,
        condition: Tensor,
        sigmas: Tensor,
        *,
        num_images: int = 1,
        is_guided: bool = False,
        reference: Tensor | None = None,
        grid: tuple[int, int] | None = None,
        truncate_timestep: bool = False,
    ) -> PreparedNextDiT:
        """Returns the network for one condition and the noise levels of a sampler: the fast path.

        Not for training: the result works in place. Needs `torch.no_grad`.

        Args:
            condition: the backbone's query states of P prompts, [P, Q, D].
            sigmas: the noise level of each step, fp32, [S].
            num_images: images of each prompt; the batch is then B = P * num_images.
            is_guided: whether to give the velocities of [null, conditional] at once.
            reference: features of images to edit, [P, N, reference_channels].
            grid: rows and columns of the tokens; None for the config's square.
            truncate_timestep: see `velocity`.

        Raises:
            ValueError: if a shape does not fit the network, naming both sides.
        """
        grid = grid or (self.config.grid, self.config.grid)
        check_shapes(self.config, None, condition, reference, grid)
        return PreparedNextDiT(
            self,
            condition,
            timesteps(sigmas.to(condition.device), truncate_timestep),
            grid,
            num_images=num_images,
            is_guided=is_guided,
            reference=reference,
        )

    def sample(self, prepared: PreparedNextDiT, noisy: Tensor, step: int) -> Tensor:
        """Returns velocities of the fast path; what offloading brings the weights for."""
        return prepared.compute(noisy, step)

    def compile_sampling(self) -> None:
        """Compiles a layer of the fast path; all layers share the result."""
        self.sample_layer = torch.compile(sample_layer)

    def embed_tokens(self, noisy: Tensor, grid: tuple[int, int]) -> Tensor:
        """Returns the image tokens [B, M, E] of noisy features [B, N, C]."""
        patches = to_patches(noisy.to(self._dtype), grid, self.config.patch_size)
        return self.patch_embedder.proj(patches)

    def embed_reference(self, reference: Tensor, grid: tuple[int, int]) -> Tensor:
        """Returns what reference features [B, N, reference_channels] add to the image tokens."""
        assert self.reference_embedder is not None, "the config has no reference_channels"
        patches = to_patches(reference.to(self._dtype), grid, self.config.patch_size)
        return self.reference_embedder(patches)

    def rope(self, grid: tuple[int, int], device: torch.device) -> RopeTable:
        """Returns the rotation of the image tokens of a grid, [M, 1, K / 2]."""
        config = self.config
        rows, columns = grid[0] // config.patch_size, grid[1] // config.patch_size
        head_dim = config.hidden_size // config.num_heads
        cos, sin = grid_rope_table(rows, columns, head_dim, device=device)
        return cos.unsqueeze(1), sin.unsqueeze(1)

    @property
    def _dtype(self) -> torch.dtype:
        return self.patch_embedder.proj.weight.dtype

    def _run(
        self,
        noisy: Tensor,
        timestep: Tensor,
        condition: Tensor,
        cache: NextDiTContext | None,
        reference: Tensor | None,
        grid: tuple[int, int],
    ) -> Tensor:
        hidden = self.embed_tokens(noisy, grid)
        if reference is not None and self.reference_embedder is not None:
            hidden = hidden + self.embed_reference(reference, grid)
        context = None
        if cache is None:
            context = self.caption_projection(condition.to(self._dtype))
            pooled = self.time_caption_embed.pool(context)
        else:
            pooled = cache.pooled
        vector = self.time_caption_embed.timestep_embedder(timestep) + pooled
        vector = functional.silu(vector)  # every consumer of the vector starts with this SiLU
        rope = self.rope(grid, hidden.device)
        for index, layer in enumerate(self.layers):
            key_value = None if cache is None else cache.layers[index]
            hidden = layer(hidden, vector, rope, context, key_value)
        velocity = self.norm_out(hidden, vector)
        return from_patches(velocity, grid, self.config.patch_size).to(noisy.dtype)
