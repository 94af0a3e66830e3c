"""What stands before and after the layers of NextDiT: embeddings and the output layer."""

from torch import Tensor, nn
from torch.nn import functional

from blip3o.nn.embedding import TimestepEmbedding
from blip3o.nn.linear import VectorLinear

VECTOR_NORM_EPS = 1e-5
"""Epsilon of the LayerNorms of queries, keys and the pooled condition, whatever `norm_eps` is."""

_OUTPUT_NORM_EPS = 1e-6


class PatchEmbedder(nn.Module):
    """Patches of features [B, M, C p p] to the DiT's width."""

    def __init__(self, patch_channels: int, hidden_size: int) -> None:
        super().__init__()
        self.proj = nn.Linear(patch_channels, hidden_size)


class CaptionProjection(nn.Module):
    """Query states to the DiT's width."""

    def __init__(self, condition_size: int, hidden_size: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(condition_size, hidden_size)
        self.linear_2 = nn.Linear(hidden_size, hidden_size)

    def forward(self, condition: Tensor) -> Tensor:
        """Returns the context [B, Q, E] of query states [B, Q, D]."""
        return self.linear_2(functional.gelu(self.linear_1(condition), approximate="tanh"))


class TimeCaptionEmbedding(nn.Module):
    """The conditioning vector: timestep embedding + pooled context."""

    def __init__(self, hidden_size: int, vector_size: int) -> None:
        super().__init__()
        self.timestep_embedder = TimestepEmbedding(vector_size)
        self.caption_embedder = nn.Sequential(
            nn.LayerNorm(hidden_size, eps=VECTOR_NORM_EPS), VectorLinear(hidden_size, vector_size)
        )

    def pool(self, context: Tensor) -> Tensor:
        """Returns the context's part of the vector, [B, vector_size], of a context [B, Q, E]."""
        return self.caption_embedder(context.float().mean(dim=1).to(context.dtype))


class OutputLayer(nn.Module):
    """Modulated norm and projection to features."""

    def __init__(self, hidden_size: int, vector_size: int, out_channels: int) -> None:
        super().__init__()
        self.linear_1 = VectorLinear(vector_size, hidden_size)
        self.linear_2 = nn.Linear(hidden_size, out_channels)

    def forward(self, hidden: Tensor, vector: Tensor) -> Tensor:
        """Returns patches of velocities [B, M, C p p] of tokens [B, M, E] and a vector [B, V]."""
        return self.project(hidden, self.scale(vector).unsqueeze(1))

    def scale(self, vector: Tensor) -> Tensor:
        """Returns the scale [..., E] that a conditioning vector [..., V] asks for."""
        return 1 + self.linear_1(vector)

    def project(self, hidden: Tensor, scale: Tensor) -> Tensor:
        """Returns patches of velocities for a scale [B, 1, E]."""
        normed = functional.layer_norm(hidden, hidden.shape[-1:], eps=_OUTPUT_NORM_EPS)
        return self.linear_2(normed * scale)
