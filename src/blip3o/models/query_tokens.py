"""The learned queries that read an image's plan out of the backbone."""

import torch
from torch import Tensor, nn


class QueryTokens(nn.Module):
    """Q learned embeddings that are appended to every prompt of an image.

    Args:
        num_query_tokens: Q.
        hidden_size: the backbone's width D.
        init_std: standard deviation of the fresh values (published: 1).

    Reference:
        Published as `model.latent_queries` of shape (1, Q, D).
    """

    def __init__(self, num_query_tokens: int, hidden_size: int, init_std: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_query_tokens, hidden_size) * init_std)

    def forward(self, batch_size: int) -> Tensor:
        """Returns the queries for each row, [B, Q, D]."""
        return self.weight.expand(batch_size, -1, -1)
