"""BLIP3-o's generator: a NextDiT draws from the backbone's states of a prompt.

Published are the states at query tokens that follow the prompt. The DiT may also attend to the
states of the prompt's own tokens: the final ones, or in each of its layers those of a backbone
layer. The empty condition is always zeros. Equal tokens give the same attention and the same mean
in any number, so it does not depend on the length of the prompt that it replaces. Axes: P prompts,
Q tokens of the condition, T prompt tokens, L layers of the DiT, N feature tokens, K channels, D
width of the backbone.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from blip3o.core.bounds import Count, NotNegative, Positive, Whole
from blip3o.models.backbones.base import Backbone
from blip3o.models.dit.nextdit import NextDiT, NextDiTConfig, NextDiTContext
from blip3o.models.dit.nextdit_sampling import LayerFunction, PreparedNextDiT, sample_layer
from blip3o.models.generators.plan import Generator, Joints, Plan, Sampling
from blip3o.models.generators.queries import QueryTokens
from blip3o.models.prompts import Prompts


@dataclasses.dataclass(frozen=True, kw_only=True)
class QueryDiTConfig:
    """Sizes of the queries and of the NextDiT; widths of its neighbors are derived.

    Args:
        reads: states that the DiT attends to. "queries" (published): those at learned queries after
            the prompt. "prompt": the final ones of the prompt's tokens. "layers": those of the
            prompt's tokens after a backbone layer, where layers of the DiT and of the backbone
            match by relative depth.
        num_query_tokens: learned queries after a prompt; 0 if the DiT reads no queries.
        query_init_std: standard deviation of fresh queries (published: 1).
        hidden_size: width of the DiT (E).
        num_layers: transformer layers of the DiT.
        num_heads: attention heads of the DiT; the head dim must be a multiple of 4.
        num_kv_heads: heads of keys and values; None for as many as query heads.
        patch_size: side of the square of feature tokens that forms one image token.
        multiple_of: the feed-forward width is rounded up to a multiple of this.
        ffn_dim_multiplier: optional factor of the feed-forward width.
        norm_eps: epsilon of the RMS norms of the DiT.
        takes_reference: whether the DiT also reads the features of the image to edit. The released
            models do not.
        fresh_gates: "closed" is the published start of the DiT's gates; "open" lets every branch
            pass from the start; see `NextDiTConfig`.
    """

    kind: str = "query_dit"
    reads: Literal["queries", "prompt", "layers"] = "queries"
    num_query_tokens: Whole
    query_init_std: NotNegative = 1.0
    hidden_size: Count
    num_layers: Count
    num_heads: Count
    num_kv_heads: Count | None = None
    patch_size: Count = 1
    multiple_of: Count = 256
    ffn_dim_multiplier: Positive | None = None
    norm_eps: NotNegative = 1e-5
    takes_reference: bool = False
    fresh_gates: Literal["closed", "open"] = "closed"

    def __post_init__(self) -> None:
        if (self.reads == "queries") != (self.num_query_tokens > 0):
            wanted = "at least 1" if self.reads == "queries" else "0"
            raise ValueError(
                f"num_query_tokens must be {wanted} for a generator that reads {self.reads}, got "
                f"{self.num_query_tokens}"
            )

    @classmethod
    def tiny(cls) -> "QueryDiTConfig":
        """Returns the smallest useful config, for tests."""
        return cls(
            num_query_tokens=4,
            hidden_size=16,
            num_layers=2,
            num_heads=2,
            multiple_of=16,
            takes_reference=True,
        )

    @classmethod
    def published(cls) -> "QueryDiTConfig":
        """Returns the sizes of the released models."""
        return cls(num_query_tokens=64, hidden_size=1792, num_layers=24, num_heads=28)

    @property
    def is_guided(self) -> bool:
        """Zeros are the empty condition of guidance."""
        return True

    def num_reserved_positions(self, joints: Joints) -> int:
        """Returns the number of queries."""
        del joints
        return self.num_query_tokens

    def dit(self, joints: Joints) -> NextDiTConfig:
        """Returns the DiT's config between its neighbors.

        Raises:
            ValueError: if the sizes do not fit each other.
        """
        return NextDiTConfig(
            in_channels=joints.feature_channels,
            condition_size=joints.backbone_size,
            grid=joints.grid,
            reference_channels=joints.feature_channels if self.takes_reference else 0,
            **{name: getattr(self, name) for name in _SHARED},
        )

    def check(self, joints: Joints) -> None:
        """Checks that the generator fits its neighbors.

        Raises:
            ValueError: if it does not.
        """
        self.dit(joints)

    def build(self, joints: Joints) -> "QueryDiT":
        """Returns the generator with fresh weights."""
        return QueryDiT(self, joints)


_SHARED = {field.name for field in dataclasses.fields(QueryDiTConfig)} & {
    field.name for field in dataclasses.fields(NextDiTConfig)
}


class QueryDiT(Generator):
    """A NextDiT whose condition is states of the backbone; see the module.

    The methods `prepare_context`, `velocity`, `prepare` and `sample` forward to the DiT, so that
    offloading can fetch the weights of the whole generator around them.

    Args:
        config: sizes.
        joints: sizes of the neighbors.
    """

    seams: ClassVar[tuple[str, ...]] = ("prepare_context", "velocity", "prepare", "sample")
    resident: ClassVar[tuple[str, ...]] = ("query_tokens",)

    def __init__(self, config: QueryDiTConfig, joints: Joints) -> None:
        super().__init__()
        self.config = config
        self.query_tokens: QueryTokens | None = None
        if config.num_query_tokens:
            self.query_tokens = QueryTokens(
                config.num_query_tokens, joints.backbone_size, config.query_init_std
            )
        self.dit: NextDiT = config.dit(joints).build()
        self._layer: LayerFunction = sample_layer

    def plan(
        self,
        backbone: Backbone[Any],
        prompts: Prompts,
        *,
        prompt_gradient: bool = False,
        keep_states: bool = False,
    ) -> "QueryPlan":
        """Returns the plan of prompts; arguments as for `UnifiedModel.plan`."""
        reference = prompts.reference if self.config.takes_reference else None
        if self.query_tokens is not None:
            states = self.query_tokens.read(backbone, prompts, prompt_gradient=prompt_gradient)
            condition, mask = states[:, prompts.input_ids.shape[1] :], None
        else:
            states, condition = self._read(backbone, prompts, prompt_gradient=prompt_gradient)
            mask = prompts.attention_mask
            condition = condition.masked_fill(~_over_tokens(mask, condition), 0.0)
        return QueryPlan(self, condition, mask, reference, states if keep_states else None)

    def _read(
        self, backbone: Backbone[Any], prompts: Prompts, *, prompt_gradient: bool
    ) -> tuple[Tensor, Tensor]:
        """Returns the final states of prompts [P, T, D] and the condition made of their states."""
        mask = prompts.attention_mask
        skip = backbone.is_frozen and not prompt_gradient
        with torch.no_grad() if skip else contextlib.nullcontext():
            embeds = backbone.embed(prompts.input_ids, prompts.images)
            if self.config.reads == "prompt":
                states = backbone(embeds, mask)
                return states, states
            layers = backbone.layer_states(embeds, mask)
            depths = [  # the DiT's last layer reads the backbone's last
                -(-(layer + 1) * len(layers) // self.config.num_layers) - 1
                for layer in range(self.config.num_layers)
            ]
            return layers[-1], torch.stack([_unit(layers[depth]) for depth in depths], dim=1)

    def prepare_context(self, condition: Tensor, mask: Tensor | None) -> NextDiTContext:
        """See `NextDiT.prepare_context`."""
        return self.dit.prepare_context(condition, mask)

    def velocity(
        self,
        noisy: Tensor,
        sigma: Tensor,
        condition: Tensor,
        context: NextDiTContext | None,
        reference: Tensor | None,
    ) -> Tensor:
        """See `NextDiT.velocity`."""
        return self.dit.velocity(noisy, sigma, condition, context, reference)

    def prepare(
        self,
        condition: Tensor,
        sigmas: Tensor,
        *,
        num_images: int,
        is_guided: bool,
        mask: Tensor | None,
        reference: Tensor | None,
        truncate_timestep: bool,
    ) -> PreparedNextDiT:
        """Returns the DiT's fast path; arguments as for `PreparedNextDiT`."""
        return PreparedNextDiT(
            self.dit,
            condition,
            sigmas,
            num_images=num_images,
            is_guided=is_guided,
            mask=mask,
            reference=reference,
            truncate_timestep=truncate_timestep,
            layer=self._layer,
        )

    def sample(self, noisy: Tensor, prepared: PreparedNextDiT, step: int) -> Tensor:
        """Returns velocities of the fast path; see `PreparedNextDiT.velocity`."""
        return prepared.velocity(noisy, step)

    def empty_plan(
        self, backbone: Backbone[Any], num_prompts: int, prompt_tokens: int
    ) -> "QueryPlan":
        """See `Generator.empty_plan`."""
        del backbone
        config, width = self.config, self.dit.config.condition_size
        length = config.num_query_tokens or prompt_tokens
        shape = (config.num_layers, length) if config.reads == "layers" else (length,)
        states = self.dit.caption_projection.linear_1.weight.new_empty(num_prompts, *shape, width)
        mask = None
        if self.query_tokens is None:
            mask = states.new_ones(num_prompts, length, dtype=torch.bool)
        return QueryPlan(self, states, mask)

    def compile_sampling(self) -> None:
        """Compiles one layer function, which all layers of the fast path share."""
        self._layer = torch.compile(sample_layer)


def _over_tokens(mask: Tensor, states: Tensor) -> Tensor:
    """Returns a mask [P, T] in a form that broadcasts over states [P, T, D] or [P, L, T, D]."""
    return mask.view(len(mask), *[1] * (states.ndim - 3), -1, 1)


def _unit(states: Tensor) -> Tensor:
    """Returns states divided by their root mean square: those of deeper layers are larger."""
    return nn.functional.rms_norm(states.float(), states.shape[-1:]).to(states.dtype)


@dataclasses.dataclass(eq=False)
class QueryPlan(Plan):
    """The plan of the query DiT: states of the backbone for P prompts.

    Args:
        generator: the generator that draws from the states.
        states: the condition of the DiT, [P, Q, D] or [P, L, Q, D]; zeros are the empty one.
        mask: True for real tokens, bool [P, Q]; None if all are.
        reference: normalized features of images to edit, [P, N, K].
        backbone_states: see `Plan`.
    """

    generator: QueryDiT
    states: Tensor
    mask: Tensor | None = None
    reference: Tensor | None = None
    backbone_states: Tensor | None = None

    @functools.cached_property
    def _context(self) -> NextDiTContext:
        """The part of the DiT's computation that does not depend on the noise level."""
        return self.generator.prepare_context(self.states, self.mask)

    def __len__(self) -> int:
        """Returns the number of prompts (P)."""
        return len(self.states)

    def null(self) -> Self:
        """See `Plan`. The image to edit stays, because guidance acts on the text only."""
        return dataclasses.replace(self, states=torch.zeros_like(self.states))

    def dropped(self, is_dropped: Tensor) -> Self:
        """See `Plan`."""
        rows = _over_tokens(is_dropped.unsqueeze(1), self.states)
        return dataclasses.replace(self, states=self.states.masked_fill(rows, 0.0))

    def select(self, rows: Tensor) -> Self:
        """See `Plan`."""
        rows = rows.to(self.states.device)
        return self.with_tensors([tensor.index_select(0, rows) for tensor in self.tensors()])

    @classmethod
    def join(cls, plans: Sequence[Self]) -> Self:
        """See `Plan`. Shorter prompts are padded on the left and their padding is hidden.

        Raises:
            ValueError: if some plans edit images and others do not.
        """
        longest = max(plan.num_tokens for plan in plans)
        lists = [plan.padded(longest).tensors() for plan in plans]
        if len({len(tensors) for tensors in lists}) > 1:
            raise ValueError("plans of edits and of new images cannot share a batch")
        return plans[0].with_tensors([torch.cat(same) for same in zip(*lists, strict=True)])

    @property
    def num_tokens(self) -> int:
        """See `Plan`. Queries are always equally many."""
        return 0 if self.mask is None else self.states.shape[-2]

    def padded(self, num_tokens: int) -> Self:
        """See `Plan`."""
        if self.mask is None:
            return self
        front = num_tokens - self.num_tokens
        return dataclasses.replace(
            self,
            states=nn.functional.pad(self.states, (0, 0, front, 0)),
            mask=nn.functional.pad(self.mask, (front, 0)),
        )

    def velocity(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        """See `Plan`."""
        return self.generator.velocity(noisy, sigma, self.states, self._context, self.reference)

    def sampling(
        self,
        sigmas: Tensor,
        *,
        num_images: int = 1,
        is_guided: bool = False,
        truncate_timestep: bool = False,
    ) -> Sampling:
        """See `Plan`."""
        prepared = self.generator.prepare(
            self.states,
            sigmas,
            num_images=num_images,
            is_guided=is_guided,
            mask=self.mask,
            reference=self.reference,
            truncate_timestep=truncate_timestep,
        )
        return _QuerySampling(self.generator, prepared)

    def tensors(self) -> tuple[Tensor, ...]:
        """See `Plan`."""
        parts = (self.states, self.mask, self.reference)
        return tuple(tensor for tensor in parts if tensor is not None)

    def with_tensors(self, tensors: Sequence[Tensor]) -> Self:
        """See `Plan`."""
        rest = iter(tensors)
        return dataclasses.replace(
            self,
            states=next(rest),
            mask=None if self.mask is None else next(rest),
            reference=None if self.reference is None else next(rest),
            backbone_states=None,
        )


@dataclasses.dataclass(frozen=True)
class _QuerySampling:
    """Calls a prepared DiT through the generator, whose methods offloading wraps."""

    generator: QueryDiT
    prepared: PreparedNextDiT

    def velocity(self, noisy: Tensor, step: int) -> Tensor:
        return self.generator.sample(noisy, self.prepared, step)
