"""NextDiT: the diffusion transformer of BLIP3-o, with the weight names of the released models.

The network is the 2-D DiT of Lumina-Next with cross-attention to states of the backbone, which are
its condition. In the released models these are the states at Q query tokens, [B, Q, D]. Each layer
may also have states of its own, [B, layers, Q, D], and a mask may hide some of the tokens. The fast
path for sampling is in `nextdit_sampling`. Axes: B batch, N feature tokens, C feature channels, M
image tokens (patches of feature tokens), Q tokens of the condition, D backbone width, E DiT width,
H heads, K head dim.

Reference:
    BLIP3-o (arXiv 2505.09568) and Lumina-Next (arXiv 2406.18583). The parity family `dit` compares
    the numbers with those of the released code.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import ClassVar, Concatenate, Literal, ParamSpec, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from blip3o.core.bounds import Count, NotNegative, Positive, Whole
from blip3o.flow.sigmas import NUM_TIMESTEPS
from blip3o.nn.attention import attend
from blip3o.nn.embedding import TimestepEmbedding
from blip3o.nn.linear import VectorLinear
from blip3o.nn.mlp import SwiGLU, swiglu_size
from blip3o.nn.norm import RMSNorm
from blip3o.nn.rope import RopeTable, grid_rope_table, rotate_neighbors

KeyValue = tuple[Tensor, Tensor]
"""Keys and values of an attention, [B, num_kv_heads, S, K] each."""

_VECTOR_NORM_EPS = 1e-5
"""Epsilon of the LayerNorms of queries, keys and the pooled condition, for any `norm_eps`."""
_OUTPUT_NORM_EPS = 1e-6

_Inputs = ParamSpec("_Inputs")
_Output = TypeVar("_Output")


@dataclasses.dataclass(frozen=True, kw_only=True)
class NextDiTConfig:
    """Sizes of a NextDiT.

    Args:
        in_channels: channels of the features it generates (C).
        condition_size: width of the backbone's states (D).
        hidden_size: width (E).
        num_layers: transformer layers.
        num_heads: attention heads (H); the head dim must be a multiple of 4.
        num_kv_heads: heads of keys and values; None for as many as query heads.
        grid: feature tokens along one side of the square grid.
        patch_size: side of the square of feature tokens that forms one image token.
        multiple_of: the feed-forward width is rounded up to a multiple of this.
        ffn_dim_multiplier: optional factor of the feed-forward width.
        norm_eps: epsilon of the RMS norms. The LayerNorms have a fixed one, as published.
        reference_channels: channels of the features of an image to edit; 0 (the released layout)
            for a network without this input.
        fresh_gates: state of the gates of fresh weights; loaded weights bring their own. "closed"
            is the published start: the gates of cross-attention are zero, those of the other
            branches near zero. "open" starts all near one, so every branch passes at once, and the
            network learns much earlier to follow the condition.
    """

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
    fresh_gates: Literal["closed", "open"] = "closed"

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
    """The part of the network's computation that depends on the condition only.

    Args:
        pooled: the condition's part of the conditioning vector, [B, vector_size].
        layers: cross-attention keys and values of each layer.
        mask: True for the tokens that the image attends to, bool [B, 1, 1, Q]; None for all.
    """

    pooled: Tensor
    layers: tuple[KeyValue, ...]
    mask: Tensor | None = None


class NextDiT(nn.Module):
    """Predicts the velocity (noise - clean) of noisy features.

    Args:
        config: sizes.
    """

    def __init__(self, config: NextDiTConfig) -> None:
        super().__init__()
        self.config = config
        width, area = config.hidden_size, config.patch_size**2
        self.patch_embedder = _PatchEmbedder(config.in_channels * area, width)
        self.reference_embedder: nn.Linear | None = None
        if config.reference_channels:
            self.reference_embedder = nn.Linear(config.reference_channels * area, width)
            nn.init.zeros_(self.reference_embedder.weight)  # editing starts as generation
            nn.init.zeros_(self.reference_embedder.bias)
        self.caption_projection = _CaptionProjection(config.condition_size, width)
        self.time_caption_embed = _TimeCaptionEmbedding(width, config.vector_size)
        self.layers = nn.ModuleList(NextDiTBlock(config) for _ in range(config.num_layers))
        self.norm_out = _OutputLayer(width, config.vector_size, config.in_channels * area)

    @property
    def blocks(self) -> list["NextDiTBlock"]:
        """The transformer layers, typed."""
        return [cast("NextDiTBlock", layer) for layer in self.layers]

    def forward(self, noisy: Tensor, timestep: Tensor, condition: Tensor) -> Tensor:
        """Returns the velocity in the released form, [B, C, rows, columns].

        Args:
            noisy: noisy features laid out as an image, [B, C, rows, columns]; any grid.
            timestep: 1000 * sigma, float or integer, [B].
            condition: the backbone's query states, [B, Q, D].
        """
        rows, columns = noisy.shape[-2:]
        tokens = noisy.flatten(2).transpose(1, 2)
        context = self.prepare_context(condition)
        velocity = self._run(tokens, timestep, context, None, (rows, columns))
        return velocity.transpose(1, 2).unflatten(2, (rows, columns))

    def velocity(
        self,
        noisy: Tensor,
        sigma: Tensor,
        condition: Tensor,
        context: NextDiTContext | None = None,
        reference: Tensor | None = None,
        *,
        grid: tuple[int, int] | None = None,
        truncate_timestep: bool = False,
    ) -> Tensor:
        """Returns the velocity (noise - clean) at noisy features, [B, N, C].

        Args:
            noisy: features on the path, row-major tokens, [B, N, C].
            sigma: noise levels in [0, 1], fp32, [B].
            condition: states of the backbone, [B, Q, D], or [B, layers, Q, D]; zeros are the empty
                condition.
            context: the result of `prepare_context(condition)`, which then replaces the condition.
            reference: features of an image to edit, [B, N, reference_channels].
            grid: rows and columns of the N tokens; None for a square.
            truncate_timestep: round 1000 * sigma down to a whole number, as the released sampler
                does.

        Raises:
            ValueError: if a shape does not fit the network.
        """
        timestep = timesteps(sigma, truncate_timestep)
        grid = grid or _square_grid(noisy.shape[1])
        check_shapes(self.config, noisy, condition, reference, grid)
        if context is None:
            context = self.prepare_context(condition)
        return self._run(noisy, timestep, context, reference, grid)

    def prepare_context(self, condition: Tensor, mask: Tensor | None = None) -> NextDiTContext:
        """Returns the computation that all sampling steps share.

        Args:
            condition: states of the backbone, [B, Q, D] for all layers, or [B, layers, Q, D].
            mask: True for the tokens to use, at least one in each row, bool [B, Q]; None for all.
        """
        context = self.caption_projection(condition.to(self.dtype))
        layers = [context] * len(self.layers) if context.ndim == 3 else context.unbind(1)
        return NextDiTContext(
            pooled=self.time_caption_embed.pool(context, mask),
            layers=tuple(
                block.cross_key_value(one) for block, one in zip(self.blocks, layers, strict=True)
            ),
            mask=None if mask is None else mask[:, None, None],
        )

    def embed_tokens(self, noisy: Tensor, grid: tuple[int, int]) -> Tensor:
        """Returns the image tokens [B, M, E] of noisy features [B, N, C]."""
        return self.patch_embedder.proj(to_patches(noisy.to(self.dtype), grid, self.patch_size))

    def embed_reference(self, reference: Tensor, grid: tuple[int, int]) -> Tensor:
        """Returns the reference term of the image tokens, [B, M, E].

        Args:
            reference: features of images to edit, [B, N, reference_channels].
            grid: rows and columns of the N tokens.
        """
        assert self.reference_embedder is not None, "the config has no reference_channels"
        patches = to_patches(reference.to(self.dtype), grid, self.patch_size)
        return self.reference_embedder(patches)

    def from_patches(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """Returns the feature tokens [B, N, C] of output patches [B, M, p p C]."""
        return from_patches(patches, grid, self.patch_size)

    def rope(self, grid: tuple[int, int], device: torch.device) -> RopeTable:
        """Returns the rotation of the image tokens of a grid, [M, 1, K / 2]."""
        config = self.config
        rows, columns = grid[0] // config.patch_size, grid[1] // config.patch_size
        head_dim = config.hidden_size // config.num_heads
        cos, sin = grid_rope_table(rows, columns, head_dim, device=device)
        return cos.unsqueeze(1), sin.unsqueeze(1)

    @property
    def patch_size(self) -> int:
        """Side of the square of feature tokens that forms one image token."""
        return self.config.patch_size

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.patch_embedder.proj.weight.dtype

    def _run(
        self,
        noisy: Tensor,
        timestep: Tensor,
        context: NextDiTContext,
        reference: Tensor | None,
        grid: tuple[int, int],
    ) -> Tensor:
        hidden = self.embed_tokens(noisy, grid)
        if reference is not None and self.reference_embedder is not None:
            hidden = hidden + self.embed_reference(reference, grid)
        vector = self.time_caption_embed.timestep_embedder(timestep) + context.pooled
        vector = functional.silu(vector)  # every consumer of the vector starts with this SiLU
        rope = self.rope(grid, hidden.device)
        for layer, cross in zip(self.layers, context.layers, strict=True):
            hidden = layer(hidden, vector, rope, cross, context.mask)
        return self.from_patches(self.norm_out(hidden, vector), grid).to(noisy.dtype)


class NextDiTBlock(nn.Module):
    """One layer: gated self- and cross-attention that share an output, then SwiGLU.

    Args:
        config: sizes.
    """

    seams: ClassVar[tuple[str, ...]] = ("forward", "cross_key_value", "run")

    def __init__(self, config: NextDiTConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.norm_eps
        inner = swiglu_size(width, config.multiple_of, config.ffn_dim_multiplier)
        self.gate = nn.Parameter(torch.zeros(config.num_heads))
        self.norm1 = _ModulatedNorm(width, config.vector_size, eps)
        self.attn1 = _Projections(config)
        self.norm1_context = RMSNorm(width, eps)
        self.attn2 = _CrossProjections(config)
        self.norm2 = RMSNorm(width, eps)
        self.ffn_norm1 = RMSNorm(width, eps)
        self.feed_forward = SwiGLU(width, inner)
        self.ffn_norm2 = RMSNorm(width, eps)
        if config.fresh_gates == "open":
            nn.init.ones_(self.gate)
            self.norm1.open_gates()

    def forward(
        self,
        hidden: Tensor,
        vector: Tensor,
        rope: RopeTable,
        cross: KeyValue,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Returns the transformed tokens, [B, M, E].

        Args:
            hidden: image tokens, [B, M, E].
            vector: conditioning vector after its SiLU, [B, vector_size].
            rope: rotation of the image tokens, [M, 1, K / 2].
            cross: the result of `cross_key_value` for the condition.
            mask: True for the tokens of the condition to attend to, [B, 1, 1, Q]; None for all.
        """
        changes = self.norm1.linear(vector).unsqueeze(1).chunk(4, dim=-1)
        attention_scale, attention_gate, ffn_scale, ffn_gate = changes
        normed = self.norm1.norm(hidden) * (1 + attention_scale)
        mixed = self._attention(normed, rope, cross, mask)
        hidden = torch.addcmul(hidden, attention_gate.tanh(), self.norm2(mixed))
        fed = self.feed_forward(self.ffn_norm1(hidden) * (1 + ffn_scale))
        return torch.addcmul(hidden, ffn_gate.tanh(), self.ffn_norm2(fed))

    def cross_key_value(self, context: Tensor) -> KeyValue:
        """Returns the cross-attention's keys and values of a projected condition [B, Q, E]."""
        normed = self.norm1_context(context)
        return self.attn2.key(normed).transpose(1, 2), self.attn2.value(normed).transpose(1, 2)

    def run(
        self,
        function: Callable[Concatenate["NextDiTBlock", _Inputs], _Output],
        *inputs: _Inputs.args,
        **named: _Inputs.kwargs,
    ) -> _Output:
        """Calls `function(self, ...)`; as a seam, it lets offloading fetch the weights first."""
        return function(self, *inputs, **named)

    def _attention(
        self, normed: Tensor, rope: RopeTable, cross: KeyValue, mask: Tensor | None
    ) -> Tensor:
        query = rotate_neighbors(self.attn1.query(normed), rope).transpose(1, 2)
        key = rotate_neighbors(self.attn1.key(normed), rope).transpose(1, 2)
        own = attend(query, key, self.attn1.value(normed).transpose(1, 2))
        # The released network rotates the cross-attention's queries, but not its keys.
        query = rotate_neighbors(self.attn2.query(normed), rope).transpose(1, 2)
        other = attend(query, *cross, mask=mask)
        mixed = torch.addcmul(own, self.gate.tanh().view(-1, 1, 1), other)  # [B, H, M, K]
        return self.attn2.to_out[0](mixed.transpose(1, 2).flatten(2))


class _ModulatedNorm(nn.Module):
    """An RMS norm, and the layer that converts the conditioning vector to scales and gates."""

    def __init__(self, hidden_size: int, vector_size: int, eps: float) -> None:
        super().__init__()
        self.linear = VectorLinear(vector_size, 4 * hidden_size)
        self.norm = RMSNorm(hidden_size, eps)

    def open_gates(self) -> None:
        """Sets the bias of both gates to one, in the order (scale, gate, scale, gate)."""
        with torch.no_grad():
            self.linear.bias.unflatten(0, (4, -1))[1::2] = 1.0


class _Projections(nn.Module):
    """Query, key and value projections; queries and keys are normalized before heads are split."""

    def __init__(self, config: NextDiTConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.head_dim = width // config.num_heads
        key_width = self.head_dim * config.kv_heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(width, key_width, bias=False)
        self.to_v = nn.Linear(width, key_width, bias=False)
        self.norm_q = nn.LayerNorm(width, eps=_VECTOR_NORM_EPS)
        self.norm_k = nn.LayerNorm(key_width, eps=_VECTOR_NORM_EPS)

    def query(self, hidden: Tensor) -> Tensor:
        return self.norm_q(self.to_q(hidden)).unflatten(-1, (-1, self.head_dim))

    def key(self, hidden: Tensor) -> Tensor:
        return self.norm_k(self.to_k(hidden)).unflatten(-1, (-1, self.head_dim))

    def value(self, hidden: Tensor) -> Tensor:
        return self.to_v(hidden).unflatten(-1, (-1, self.head_dim))


class _CrossProjections(_Projections):
    """Projections with the output projection that self- and cross-attention share."""

    def __init__(self, config: NextDiTConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.to_out = nn.ModuleList([nn.Linear(width, width, bias=False)])


class _PatchEmbedder(nn.Module):
    """Projects patches of features [B, M, C p p] to the DiT's width."""

    def __init__(self, patch_channels: int, hidden_size: int) -> None:
        super().__init__()
        self.proj = nn.Linear(patch_channels, hidden_size)


class _CaptionProjection(nn.Module):
    """Projects the condition to the DiT's width."""

    def __init__(self, condition_size: int, hidden_size: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(condition_size, hidden_size)
        self.linear_2 = nn.Linear(hidden_size, hidden_size)

    def forward(self, condition: Tensor) -> Tensor:
        """Returns the context [..., E] of states [..., D]."""
        return self.linear_2(functional.gelu(self.linear_1(condition), approximate="tanh"))


class _TimeCaptionEmbedding(nn.Module):
    """The conditioning vector: timestep embedding + pooled context."""

    def __init__(self, hidden_size: int, vector_size: int) -> None:
        super().__init__()
        self.timestep_embedder = TimestepEmbedding(vector_size)
        self.caption_embedder = nn.Sequential(
            nn.LayerNorm(hidden_size, eps=_VECTOR_NORM_EPS), VectorLinear(hidden_size, vector_size)
        )

    def pool(self, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns the context's part of the vector, [B, vector_size].

        Args:
            context: [B, Q, E], or [B, layers, Q, E].
            mask: True for the tokens to use, [B, Q]; None for all.
        """
        tokens = context.float()
        if tokens.ndim == 4:
            tokens = tokens.mean(dim=1)
        if mask is None:
            mean = tokens.mean(dim=1)
        else:
            mean = (tokens * (mask / mask.sum(1, keepdim=True)).unsqueeze(-1)).sum(dim=1)
        return self.caption_embedder(mean.to(context.dtype))


class _OutputLayer(nn.Module):
    """Modulated norm and projection to features."""

    def __init__(self, hidden_size: int, vector_size: int, out_channels: int) -> None:
        super().__init__()
        self.linear_1 = VectorLinear(vector_size, hidden_size)
        self.linear_2 = nn.Linear(hidden_size, out_channels)

    def forward(self, hidden: Tensor, vector: Tensor) -> Tensor:
        """Returns patches of velocities [B, M, p p C] of tokens [B, M, E] and a vector [B, V]."""
        return self.project(hidden, self.scale(vector).unsqueeze(1))

    def scale(self, vector: Tensor) -> Tensor:
        """Returns the scale [..., E] of the norm for a conditioning vector [..., V]."""
        return 1 + self.linear_1(vector)

    def project(self, hidden: Tensor, scale: Tensor) -> Tensor:
        """Returns patches of velocities for a scale [B, 1, E]."""
        normed = functional.layer_norm(hidden, hidden.shape[-1:], eps=_OUTPUT_NORM_EPS)
        return self.linear_2(normed * scale)


def timesteps(sigma: Tensor, truncate: bool) -> Tensor:
    """Returns 1000 * sigma of noise levels in [0, 1], rounded down if `truncate` is true."""
    timestep = NUM_TIMESTEPS * sigma.float()
    return timestep.floor() if truncate else timestep


def check_shapes(
    config: NextDiTConfig,
    noisy: Tensor | None,
    condition: Tensor,
    reference: Tensor | None,
    grid: tuple[int, int],
) -> None:
    """Checks that the arguments of `NextDiT.velocity` fit a network.

    Raises:
        ValueError: if a shape does not fit; the message has both sizes.
    """
    for features in (noisy, reference):
        if features is not None and features.shape[1] != grid[0] * grid[1]:
            raise ValueError(
                f"{features.shape[1]} feature tokens do not fill a grid of {grid[0]} x {grid[1]}"
            )
    if noisy is not None and noisy.shape[-1] != config.in_channels:
        raise ValueError(
            f"the features have {noisy.shape[-1]} channels, the DiT {config.in_channels}"
        )
    if condition.shape[-1] != config.condition_size:
        raise ValueError(
            f"the condition is {condition.shape[-1]} wide, the DiT takes {config.condition_size}"
        )
    if condition.ndim == 4 and condition.shape[1] != config.num_layers:
        raise ValueError(
            f"the condition is for {condition.shape[1]} layers, the DiT has {config.num_layers}"
        )
    if reference is not None and reference.shape[-1] != config.reference_channels:
        raise ValueError(
            f"the reference has {reference.shape[-1]} channels, the DiT takes "
            f"{config.reference_channels}"
        )


def _square_grid(num_tokens: int) -> tuple[int, int]:
    side = math.isqrt(num_tokens)
    if side**2 != num_tokens:
        raise ValueError(
            f"{num_tokens} feature tokens do not form a square grid: give grid=(rows, columns)"
        )
    return (side, side)


def to_patches(tokens: Tensor, grid: tuple[int, int], patch_size: int) -> Tensor:
    """Returns row-major patches, each ordered (channel, row, column), [B, M, C p p]."""
    if patch_size == 1:
        return tokens
    rows, columns = grid[0] // patch_size, grid[1] // patch_size
    blocks = tokens.unflatten(1, (rows, patch_size, columns, patch_size))
    return blocks.permute(0, 1, 3, 5, 2, 4).flatten(3).flatten(1, 2)


def from_patches(patches: Tensor, grid: tuple[int, int], patch_size: int) -> Tensor:
    """Returns the feature tokens of patches, each ordered (row, column, channel)."""
    # The released network orders its input and its output patches differently.
    if patch_size == 1:
        return patches
    rows, columns = grid[0] // patch_size, grid[1] // patch_size
    blocks = patches.unflatten(2, (patch_size, patch_size, -1)).unflatten(1, (rows, columns))
    return blocks.transpose(2, 3).flatten(1, 4)
