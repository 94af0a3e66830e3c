"""CLIP + MSE: query tokens read the prompt, and a head regresses the features from their states.

There are as many queries as feature tokens; query k yields token k. The features of a prompt are
the mean of all images that fit it, so a prompt always gives the same features, and guidance has no
meaning. Behind the seam of plans the prediction f is a velocity, (noisy - f) / sigma: a solver of
any number of steps lands on f, and one step suffices.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from blip3o.core.bounds import Count, NotNegative, Whole
from blip3o.models.backbones.base import Backbone
from blip3o.models.generators.plan import Generator, Joints, Plan
from blip3o.models.generators.queries import QueryTokens
from blip3o.models.prompts import Prompts
from blip3o.nn.transformer import TransformerBlock


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegressionConfig:
    """Sizes of the head; the number of queries and all widths follow from the neighbors.

    Args:
        query_init_std: standard deviation of fresh queries (published: 1).
        num_layers: bidirectional transformer layers before the linear map, at the backbone's width;
            0 is the linear head of the paper.
        num_heads: their attention heads.
    """

    kind: str = "regression"
    query_init_std: NotNegative = 1.0
    num_layers: Whole = 0
    num_heads: Count = 1

    @property
    def takes_reference(self) -> bool:
        """An image to edit is read through the prompt only."""
        return False

    @property
    def is_guided(self) -> bool:
        """The features of a prompt are one mean; guidance has no meaning."""
        return False

    @classmethod
    def tiny(cls) -> "RegressionConfig":
        """Returns the smallest useful config, for tests."""
        return cls(num_layers=1, num_heads=2)

    def num_reserved_positions(self, joints: Joints) -> int:
        """Returns the number of queries: one for each feature token."""
        return joints.grid**2

    def check(self, joints: Joints) -> None:
        """Checks that the head fits the backbone.

        Raises:
            ValueError: if its heads do not divide the backbone's width.
        """
        if self.num_layers and joints.backbone_size % self.num_heads:
            raise ValueError(
                f"num_heads {self.num_heads} does not divide the backbone's width "
                f"{joints.backbone_size}"
            )

    def build(self, joints: Joints) -> "Regression":
        """Returns the generator with fresh weights."""
        return Regression(self, joints)


class Regression(Generator):
    """Maps the states of query tokens to normalized features.

    Args:
        config: sizes.
        joints: sizes of the neighbors.

    Reference:
        "CLIP + MSE" of BLIP3-o (arXiv 2505.09568, section 3); the heads of Emu2 and MetaQuery.
    """

    seams: ClassVar[tuple[str, ...]] = ("features",)
    resident: ClassVar[tuple[str, ...]] = ("query_tokens",)

    def __init__(self, config: RegressionConfig, joints: Joints) -> None:
        super().__init__()
        self.config = config
        self.query_tokens = QueryTokens(joints.grid**2, joints.backbone_size, config.query_init_std)
        self.layers = nn.ModuleList(
            TransformerBlock(joints.backbone_size, config.num_heads)
            for _ in range(config.num_layers)
        )
        self.out = nn.Linear(joints.backbone_size, joints.feature_channels)

    def plan(
        self,
        backbone: Backbone[Any],
        prompts: Prompts,
        *,
        prompt_gradient: bool = False,
        keep_states: bool = False,
    ) -> "RegressionPlan":
        """Returns the plan of prompts: their predicted features."""
        states = self.query_tokens.read(backbone, prompts, prompt_gradient=prompt_gradient)
        features = self.features(states[:, prompts.input_ids.shape[1] :])
        return RegressionPlan(features, states if keep_states else None)

    def features(self, states: Tensor) -> Tensor:
        """Returns normalized features [P, N, K] of the states at the queries, [P, N, D]."""
        hidden = states.to(self.out.weight.dtype)
        for layer in self.layers:
            hidden = layer(hidden)
        return self.out(hidden)

    def empty_plan(
        self, backbone: Backbone[Any], num_prompts: int, prompt_tokens: int
    ) -> "RegressionPlan":
        """Returns a plan with arbitrary content; see `Generator`."""
        del backbone, prompt_tokens
        shape = (num_prompts, len(self.query_tokens.weight), self.out.out_features)
        return RegressionPlan(self.out.weight.new_empty(shape))


@dataclasses.dataclass(eq=False)
class RegressionPlan(Plan):
    """Predicted features of P prompts.

    Args:
        features: normalized features, [P, N, K]; zeros, the mean of all images, are the empty plan.
        backbone_states: see `Plan`.
    """

    features: Tensor
    backbone_states: Tensor | None = None

    def __len__(self) -> int:
        """Returns the number of prompts (P)."""
        return len(self.features)

    def null(self) -> Self:
        """See `Plan`."""
        return dataclasses.replace(self, features=torch.zeros_like(self.features))

    def dropped(self, is_dropped: Tensor) -> Self:
        """See `Plan`."""
        features = self.features.masked_fill(is_dropped[:, None, None], 0.0)
        return dataclasses.replace(self, features=features)

    def select(self, rows: Tensor) -> Self:
        """See `Plan`."""
        return self.with_tensors([self.features[rows.to(self.features.device)]])

    @classmethod
    def join(cls, plans: Sequence[Self]) -> Self:
        """See `Plan`."""
        return plans[0].with_tensors([torch.cat([plan.features for plan in plans])])

    def velocity(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        """See `Plan`."""
        return (noisy - self.features.to(noisy)) / sigma.to(noisy)[:, None, None]

    def tensors(self) -> tuple[Tensor, ...]:
        """See `Plan`."""
        return (self.features,)

    def with_tensors(self, tensors: Sequence[Tensor]) -> Self:
        """See `Plan`."""
        return dataclasses.replace(self, features=tensors[0], backbone_states=None)
