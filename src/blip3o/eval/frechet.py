"""The Frechet distance between two sets of feature vectors, as in FID.

Each set is summarized by its mean and covariance. With fewer vectors than a few times their width
the covariances are estimated badly and the distance is far too large.
"""

import torch
from torch import Tensor


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
    x, y = first.double(), second.double()
    moved = (x.mean(0) - y.mean(0)).square().sum()
    s_x, s_y = x.T.cov(correction=1), y.T.cov(correction=1)
    # S1 S2 has the eigenvalues of the symmetric R S2 R, where R R = S1.
    variances, directions = torch.linalg.eigh(s_x)
    root = (directions * variances.clamp_min(0).sqrt()) @ directions.T
    shared = torch.linalg.eigvalsh(root @ s_y @ root).clamp_min(0).sqrt().sum()
    return float(moved + s_x.trace() + s_y.trace() - 2 * shared)
