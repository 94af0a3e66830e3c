"""Query tokens: learned embeddings whose states read a prompt for a generator."""

from typing import Any

import torch
from torch import Tensor, nn

from blip3o.models.backbones.base import Backbone
from blip3o.models.prompts import Prompts


class QueryTokens(nn.Module):
    """Q learned embeddings that follow every prompt of an image.

    Args:
        num_query_tokens: Q.
        hidden_size: the backbone's width D.
        init_std: standard deviation of the fresh values (published: 1).

    Reference:
        Published as `model.latent_queries` of shape (1, Q, D).
    """

    def __init__(self, num_query_tokens: int, hidden_size: int, init_std: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_query_tokens, hidden_size))
        nn.init.normal_(self.weight, std=init_std)

    def forward(self, batch_size: int) -> Tensor:
        """Returns the queries for each row, [B, Q, D]."""
        return self.weight.expand(batch_size, -1, -1)

    def read(
        self, backbone: Backbone[Any], prompts: Prompts, *, prompt_gradient: bool = False
    ) -> Tensor:
        """Returns the backbone's states at prompts and the queries after them, [P, T + Q, D].

        The mask is causal, so the states of a prompt do not depend on the queries. If no weight of
        the backbone is trained, keys and values of the prompt are computed without gradients, and
        only the Q query positions are back-propagated. The gradients are the same, for less than
        half of the work.

        Args:
            backbone: reads the prompts.
            prompts: the prompts.
            prompt_gradient: back-propagate through the prompts even if it changes nothing.
        """
        ids, mask = prompts.input_ids, prompts.attention_mask
        queries = self(len(prompts))
        whole_mask = torch.cat([mask, mask.new_ones(queries.shape[:2])], dim=1)
        if backbone.is_frozen and torch.is_grad_enabled() and not prompt_gradient:
            cache = backbone.new_cache(packed=backbone.is_packed(mask))
            with torch.no_grad():
                prompt = backbone.embed(ids, prompts.images)
                prompt_states = backbone(prompt, mask, cache)
            query_states = backbone(queries.to(prompt), whole_mask, cache)
            return torch.cat([prompt_states, query_states], dim=1)
        prompt = backbone.embed(ids, prompts.images)
        return backbone(torch.cat([prompt, queries.to(prompt)], dim=1), whole_mask)
