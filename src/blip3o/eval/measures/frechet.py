"""Distances between two sets of feature vectors: Frechet's, as in FID, and the kernel's, as in KID.

The Frechet distance summarizes each set by its mean and covariance. With fewer vectors than a few
times their width the covariances are estimated badly and the distance is far too large. The kernel
distance has no such bias, but its spread is large for few vectors.
"""

import statistics
from typing import NamedTuple

import torch
from torch import Tensor

from blip3o.core.rng import numpy_rng


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Returns |m1 - m2|^2 + tr(S1 + S2 - 2 sqrt(S1 S2)) of two sets of vectors, in float64.

    Args:
        first: vectors [N, D] with N of 2 or more.
        second: vectors [M, D] with M of 2 or more.

    Raises:
        ValueError: if a set has fewer than two vectors.

    Reference:
        Heusel et al. (arXiv 1706.08500); parity family `fid` (torch-fidelity and clean-fid).
    """
    if min(len(first), len(second)) < 2:
        raise ValueError("a Frechet distance needs two or more images")
    means = [one.double().mean(0) for one in (first, second)]
    # With S = X^T X, the trace of sqrt(S1 S2) is the sum of the singular values of X1 X2^T.
    x, y = (
        (one.double() - mean) / (len(one) - 1) ** 0.5
        for one, mean in zip((first, second), means, strict=True)
    )
    if max(len(x), len(y)) <= x.shape[1]:
        shared = torch.linalg.svdvals(x @ y.T).sum()
    else:
        # S1 S2 has the eigenvalues of the symmetric R S2 R, where R R = S1.
        variances, directions = torch.linalg.eigh(x.T @ x)
        root = (directions * variances.clamp_min(0).sqrt()) @ directions.T
        between = y @ root
        shared = torch.linalg.eigvalsh(between.T @ between).clamp_min(0).sqrt().sum()
    moved = (means[0] - means[1]).square().sum()
    return float(moved + x.square().sum() + y.square().sum() - 2 * shared)


class KernelDistance(NamedTuple):
    """The kernel distance over random subsets of two sets of vectors.

    Args:
        mean: mean over the subsets; it may be slightly below 0 for equal distributions.
        std: standard deviation over the subsets (divided by their number).
    """

    mean: float
    std: float


def kernel_distance(
    first: Tensor, second: Tensor, *, num_subsets: int, subset_size: int, seed: int
) -> KernelDistance:
    """Returns the unbiased squared distance with the kernel (x.y / D + 1)^3, in float64.

    Args:
        first: vectors [N, D].
        second: vectors [M, D].
        num_subsets: number of random subsets, 1 or more.
        subset_size: vectors of each set in a subset, drawn without repetition.
        seed: seed of the subsets.

    Raises:
        ValueError: if a subset has fewer than two vectors, or a set is smaller than a subset.

    Reference:
        Binkowski et al. (arXiv 1801.01401).
    """
    if not 2 <= subset_size <= min(len(first), len(second)):
        raise ValueError(
            f"subsets of {subset_size} of {len(first)} and {len(second)} vectors: 2 or more are "
            "needed, and at most all"
        )
    found = []
    for number in range(num_subsets):
        rng = numpy_rng(seed, "kid", number)
        x, y = (
            vectors[torch.from_numpy(rng.choice(len(vectors), subset_size, replace=False))].double()
            for vectors in (first, second)
        )
        found.append(_squared_distance(x, y))
    return KernelDistance(statistics.fmean(found), statistics.pstdev(found))


def _squared_distance(x: Tensor, y: Tensor) -> float:
    """Returns the unbiased estimate of two sets of one size [S, D]."""
    size, width = x.shape

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / width + 1) ** 3

    # A vector is no independent neighbor of itself, so the diagonals are left out.
    own = [
        (k.sum() - k.diagonal().sum()) / (size * (size - 1)) for k in (kernel(x, x), kernel(y, y))
    ]
    return float(own[0] + own[1] - 2 * kernel(x, y).mean())
