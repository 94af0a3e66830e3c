"""The interface of generators: a `Generator` converts prompts to a `Plan`, which gives velocities.

Images are drawn in two stages. First, `Generator.plan` reads prompts with the backbone and returns
a plan: everything that drawing needs to know about the prompts. Then, a solver starts from noise
and follows the velocity that the plan predicts for noisy features at a noise level.

    plan = model.plan(prompts)               # P prompts
    plan.velocity(noisy, sigma)              # training: any noise levels, with gradients
    sampling = plan.sampling(sigmas)         # sampling: known noise levels, without gradients
    sampling.velocity(noisy, step)

The content of a plan is private to its generator. For the query DiT it is the states at the query
tokens; another generator may keep the keys and values of a whole prompt. Objectives, the pipeline
and the server use only the methods of `Plan`, so they work with every generator. A new generator
implements `GeneratorConfig`, `Generator` and `Plan`. Axes: P prompts, B images, N feature tokens, K
feature channels, S noise levels.
"""

import abc
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from blip3o.core.config import Dataclass
from blip3o.models.backbones.base import Backbone, BackboneConfig
from blip3o.models.backbones.ragged import RowCache
from blip3o.models.prompts import Prompts, Rows

if TYPE_CHECKING:
    from blip3o.models.backbones.cache import Decoder


class Sampling(Protocol):
    """A plan prepared for known noise levels; `Plan.sampling` returns it."""

    def velocity(self, noisy: Tensor, step: int) -> Tensor:
        """Returns velocities (noise - clean), [B, N, K].

        Under guidance, the velocities for the empty prompt come first: [2 B, N, K].

        Args:
            noisy: features on the path, [B, N, K]; images of a prompt are neighbors.
            step: index of the noise level.
        """
        ...


_PlanT = TypeVar("_PlanT", bound="Plan")


class Plan(abc.ABC):
    """Everything that drawing images needs to know about P prompts."""

    backbone_states: Tensor | None = None
    """The backbone's states at the prompts and at the Q positions that the generator added after
    them, [P, T + Q, D]; None without `keep_states`."""

    @abc.abstractmethod
    def __len__(self) -> int:
        """Returns the number of prompts (P)."""

    @property
    def num_tokens(self) -> int:
        """Prompt tokens that each step of drawing reads; 0 if the prompts do not change it."""
        return 0

    def padded(self, num_tokens: int) -> Self:
        """Returns the plan with hidden tokens in front of its prompts, up to a number of tokens.

        Plans with the property `num_tokens` override it. Attention over another number of tokens
        may round differently, hidden ones included.
        """
        del num_tokens
        return self

    @abc.abstractmethod
    def null(self) -> Self:
        """Returns the plan of P empty prompts: the unconditional half of guidance."""

    @abc.abstractmethod
    def dropped(self, is_dropped: Tensor) -> Self:
        """Returns the plan with some prompts replaced by empty ones.

        Args:
            is_dropped: True for the prompts to empty, bool [P].
        """

    @abc.abstractmethod
    def select(self, rows: Tensor) -> Self:
        """Returns the plan of some prompts, in a new order, possibly repeated.

        Args:
            rows: indices of prompts, int64 [B].
        """

    def repeat(self, num_images: int) -> Self:
        """Returns the plan with every prompt repeated; copies of a prompt are neighbors."""
        if num_images == 1:
            return self
        return self.select(torch.arange(len(self)).repeat_interleave(num_images))

    @classmethod
    @abc.abstractmethod
    def join(cls, plans: Sequence[Self]) -> Self:
        """Returns one plan of the prompts of several plans, in order."""

    @abc.abstractmethod
    def velocity(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        """Returns the velocity (noise - clean) at noisy features, [P, N, K]; differentiable.

        Args:
            noisy: normalized features on the path, [P, N, K].
            sigma: noise levels in [0, 1], fp32, [P].
        """

    def sampling(
        self,
        sigmas: Tensor,
        *,
        num_images: int = 1,
        is_guided: bool = False,
        truncate_timestep: bool = False,
    ) -> Sampling:
        """Returns the plan prepared for the noise levels of a sampler. Needs `torch.no_grad`.

        A generator may override this method with a faster path that gives the same velocities.

        Args:
            sigmas: the noise level of each step, fp32, on the device of the features, [S].
            num_images: images of each prompt; B = P * num_images.
            is_guided: also compute the velocities for the empty prompt; see `Sampling.velocity`.
            truncate_timestep: round the timesteps down to whole numbers, as the released sampler
                does. A generator without timesteps ignores it.
        """
        del truncate_timestep
        return PlainSampling(self, sigmas, num_images=num_images, is_guided=is_guided)

    @abc.abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """Returns the tensors of the plan, in a fixed order; a CUDA graph replaces them."""

    @abc.abstractmethod
    def with_tensors(self, tensors: Sequence[Tensor]) -> Self:
        """Returns a plan with other tensors of the same shapes, in the order of `tensors()`."""


def join_plans(plans: Sequence[_PlanT]) -> _PlanT:
    """Returns one plan of the prompts of several plans of one generator, in order."""
    return plans[0].join(plans)


class PlainSampling:
    """Sampling without a fast path: each step calls `Plan.velocity` for the whole batch."""

    def __init__(self, plan: Plan, sigmas: Tensor, *, num_images: int, is_guided: bool) -> None:
        plan = plan.repeat(num_images)
        self._plan = join_plans([plan.null(), plan]) if is_guided else plan
        self._sigmas = sigmas
        self._is_guided = is_guided

    def velocity(self, noisy: Tensor, step: int) -> Tensor:
        """See `Sampling.velocity`."""
        noisy = torch.cat([noisy, noisy]) if self._is_guided else noisy
        return self._plan.velocity(noisy, self._sigmas[step].expand(len(noisy)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Joints:
    """Sizes of the parts to which a generator is connected; its own sizes follow from them.

    Args:
        backbone: config of the backbone.
        feature_channels: channels of the normalized features (K).
        grid: feature tokens along one side of the square grid.
    """

    backbone: BackboneConfig
    feature_channels: int
    grid: int

    @property
    def backbone_size(self) -> int:
        """Width of the backbone's states (D)."""
        return self.backbone.hidden_size

    def build_decoder(self) -> "Decoder":
        """Returns a decoder of the backbone's shape with fresh weights."""
        return self.backbone.build_decoder()


@dataclasses.dataclass(frozen=True)
class RowOutput:
    """The result of reading rows of text and images in turn.

    Args:
        velocity: velocities of the targets, in order, [targets, N, K].
        states: the backbone's states at the text, [B, T, D]; those at images are arbitrary. None
            if they were not asked for.
    """

    velocity: Tensor
    states: Tensor | None


class GeneratorConfig(Dataclass, Protocol):
    """Config of a generator, an entry of `GENERATORS`."""

    @property
    def kind(self) -> str:
        """Name in the table."""

    @property
    def takes_reference(self) -> bool:
        """Whether the generator reads the features of the image to edit."""

    @property
    def is_guided(self) -> bool:
        """Whether classifier-free guidance has a meaning for the generator."""

    def num_reserved_positions(self, joints: Joints) -> int:
        """Returns the positions of the backbone that the generator needs after a prompt."""

    def check(self, joints: Joints) -> None:
        """Checks that the generator fits its neighbors.

        Raises:
            ValueError: if it does not.
        """

    def build(self, joints: Joints) -> "Generator":
        """Returns the generator with fresh weights."""


class Generator(nn.Module):
    """Base class of generators: a network that predicts the velocity of image features."""

    seams: ClassVar[tuple[str, ...]]
    """Methods that need the generator's weights; offloading wraps them."""
    appends_images: ClassVar[bool] = False
    """Whether a drawn image is appended to the keys and values of its row. Otherwise the row is
    read anew, with the image among those of the prompt."""
    resident: ClassVar[tuple[str, ...]] = ()
    """Names of small children that stay on the device during offloading: `plan` needs them."""
    quantizable: ClassVar[tuple[str, ...]] = ()
    """Names of children with layers of the backbone's shape; quantization includes them."""

    def plan(
        self,
        backbone: Backbone[Any],
        prompts: Prompts,
        *,
        prompt_gradient: bool = False,
        keep_states: bool = False,
    ) -> Plan:
        """Returns the plan of prompts; arguments as for `UnifiedModel.plan`."""
        raise NotImplementedError

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
        """Returns the velocities of the targets in rows of text and images in turn.

        Each target gets a plan of its own from everything before it. Earlier images are read as
        those of prompts: clean, and as tokens of the backbone.

        Args:
            backbone: reads the rows.
            rows: the rows, with D drawn images.
            noisy: normalized features of the drawn images on their paths, [D, N, K].
            sigma: their noise levels, fp32, [D].
            is_dropped: True for a drawn image whose prompt is replaced by the empty one, bool [D].
            keep_states: compute the states of the text.
        """
        states = None
        if keep_states:
            states = backbone(backbone.embed(rows.input_ids, rows.images), rows.attention_mask)
        plan = self.plan(backbone, rows.prompts(backbone.filler_id))
        velocity = plan.dropped(is_dropped[rows.targets]).velocity(
            noisy[rows.targets], sigma[rows.targets]
        )
        return RowOutput(velocity, states)

    def loss_weight(self, sigma: Tensor) -> Tensor:
        """Returns the factors [B] of squared velocity errors in training; 1 unless overridden.

        With them, the loss is the squared error of the quantity that the network predicts, also if
        the generator converts it to a velocity.

        Args:
            sigma: noise levels of the errors, [B].
        """
        return torch.ones_like(sigma)

    def start_row(
        self, backbone: Backbone[Any], rows: Rows, clean: Tensor
    ) -> tuple[RowCache, Tensor]:
        """Reads the start of one row of text and images, which drawing and writing continue.

        Args:
            backbone: reads the row.
            rows: a single row.
            clean: normalized features of its drawn images, [D, N, K].

        Returns:
            Keys and values of the row, and the state of its last token, [1, D].
        """
        del clean  # the prompt's form of the images is enough
        cache = backbone.new_cache()
        embeds = backbone.embed(rows.input_ids, rows.images)
        states = backbone(embeds, rows.attention_mask, cache)
        return backbone.new_rows(cache, rows.attention_mask)[0], states[:, -1]

    def plan_row(self, backbone: Backbone[Any], row: RowCache) -> Plan:
        """Returns the plan of the image after a row; only if `appends_images`."""
        raise NotImplementedError

    def keep_image(self, backbone: Backbone[Any], row: RowCache, clean: Tensor) -> RowCache:
        """Returns a row with the clean image [1, N, K] after it; only if `appends_images`."""
        raise NotImplementedError

    def empty_plan(self, backbone: Backbone[Any], num_prompts: int, prompt_tokens: int) -> Plan:
        """Returns a plan of P prompts of equal length with arbitrary content, to measure memory."""
        raise NotImplementedError

    def compile_sampling(self) -> None:
        """Compiles the repeated part of the fast path, if the generator has one."""
