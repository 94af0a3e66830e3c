"""Random numbers as a function of their purpose, not of a state that advances.

Every draw is keyed by (seed, stream, epoch, global sample index) and comes from the counter-based
Philox generator. A resumed run, a run with another number of processes or workers, and a run with
another batch size therefore see the same noise for the same sample, bit for bit.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def numpy_rng(seed: int, stream: str, *counters: int) -> np.random.Generator:
    """Returns a generator that depends only on its arguments.

    Args:
        seed: seed of the run or the data set.
        stream: purpose of the numbers ("noise", "sigma", "caption"); streams are independent.
        counters: up to two whole numbers >= 0, usually (epoch, sample index).

    Raises:
        ValueError: for more than two counters.
    """
    if len(counters) > 2:
        raise ValueError(f"at most two counters, got {counters}")
    digest = hashlib.blake2b(f"{seed}/{stream}".encode(), digest_size=16).digest()
    key = np.frombuffer(digest, dtype=np.uint64)
    # Philox advances the low counter words itself; ours go into the high words.
    counter = np.array([0, 0, *counters, *([0] * (2 - len(counters)))], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def sample_normal(
    shape: Sequence[int], seed: int, stream: str, epochs: Tensor, indices: Tensor
) -> Tensor:
    """Returns standard normal numbers, one independent block per sample, float32 on the CPU.

    Args:
        shape: shape of one sample's block.
        seed: the run's seed.
        stream: purpose of the numbers.
        epochs: epoch of each sample, integers of shape [B].
        indices: global index of each sample, integers of shape [B].
    """
    blocks = [
        numpy_rng(seed, stream, epoch, index).standard_normal(tuple(shape), dtype=np.float32)
        for epoch, index in zip(epochs.tolist(), indices.tolist(), strict=True)
    ]
    return torch.from_numpy(np.stack(blocks))


def sample_uniform(seed: int, stream: str, epochs: Tensor, indices: Tensor) -> Tensor:
    """Returns one number in [0, 1) per sample, float64 of shape [B] on the CPU.

    Args:
        seed: the run's seed.
        stream: purpose of the numbers.
        epochs: epoch of each sample, integers of shape [B].
        indices: global index of each sample, integers of shape [B].
    """
    values = [
        numpy_rng(seed, stream, epoch, index).random()
        for epoch, index in zip(epochs.tolist(), indices.tolist(), strict=True)
    ]
    return torch.tensor(values, dtype=torch.float64)


def generator(seed: int) -> torch.Generator:
    """Returns a seeded generator on the CPU, where a seed gives the same numbers on any device."""
    return torch.Generator().manual_seed(seed)


def image_generator(seed: int, prompt_number: int, image_number: int) -> torch.Generator:
    """Returns the generator of one generated image, whatever else is generated.

    Args:
        seed: the user's seed.
        prompt_number: number of the prompt, from 0.
        image_number: number of the image of that prompt, from 0.
    """
    # This name of the stream is part of the numbers: with another one, every seed would give
    # another image than before.
    number = numpy_rng(seed, "picture", prompt_number, image_number).integers(0, 2**62)
    return generator(int(number))
