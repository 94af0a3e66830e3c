"""Feature vectors as text, so that a line of verdicts can hold them without loss."""

import base64
import binascii
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

_FORMAT = np.dtype("<f4")


def packed(vector: Tensor) -> str:
    """Returns a vector [D] as base64 of its little-endian float32 numbers."""
    numbers = vector.detach().float().cpu().numpy().astype(_FORMAT)
    return base64.b64encode(numbers.tobytes()).decode("ascii")


def unpacked(texts: Iterable[str]) -> Tensor:
    """Returns the vectors of texts, float32 [N, D].

    Raises:
        ValueError: if there is no text, a text is not of `packed`, or the vectors differ in length.
    """
    try:
        rows = [np.frombuffer(base64.b64decode(text, validate=True), _FORMAT) for text in texts]
    except binascii.Error as error:
        raise ValueError(f"a feature vector is damaged: {error}") from error
    if len({len(row) for row in rows}) != 1:
        raise ValueError("feature vectors must exist and have one length")
    return torch.from_numpy(np.stack(rows).astype(np.float32))
