"""Builds ICC color profiles for files that state their color space as numbers."""

import functools
import struct

import numpy as np
from numpy.typing import NDArray

SRGB_GAMMA = 0.0
"""Stands for the curve of sRGB, which is not a power function."""
_D65 = (0.3127, 0.3290)
_SRGB = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
_ADOBE = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))
_CODED_PRIMARIES = {
    1: _SRGB,
    4: ((0.67, 0.33), (0.21, 0.71), (0.14, 0.08)),
    5: ((0.64, 0.33), (0.29, 0.60), (0.15, 0.06)),
    **dict.fromkeys((6, 7), ((0.63, 0.34), (0.31, 0.595), (0.155, 0.07))),
    9: ((0.708, 0.292), (0.17, 0.797), (0.131, 0.046)),
    **dict.fromkeys((11, 12), ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06))),
}
_CODED_WHITES = {4: (0.31, 0.316), 11: (0.314, 0.351)}
_CODED_GAMMAS = {
    **{1: SRGB_GAMMA, 6: SRGB_GAMMA, 14: SRGB_GAMMA, 15: SRGB_GAMMA},  # television: shown as sRGB
    **{4: 2.2, 5: 2.8, 8: 1.0, 13: SRGB_GAMMA},
}
"""Primaries, whites and gammas by the code points of ITU-T H.273. HDR curves (16, 18) are missing:
they have no standard conversion to sRGB, so the profiles of such images are ignored."""
_D50 = np.array([0.9642, 1.0, 0.8249])
_BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)

Point = tuple[float, float]


def adobe_rgb() -> bytes:
    """Returns the ICC profile of Adobe RGB (1998)."""
    return matrix_profile(_D65, _ADOBE, 563 / 256)


def coded_profile(code: bytes) -> bytes | None:
    """Returns the ICC profile of color code points, as in a PNG chunk `cICP`.

    Args:
        code: code points of primaries, curve, matrix and range, one byte each.

    Returns:
        The profile; empty bytes for unknown code points; None for a damaged chunk.
    """
    if len(code) != 4:
        return None
    primaries, curve, matrix, is_full = code
    if primaries not in _CODED_PRIMARIES or curve not in _CODED_GAMMAS or matrix or not is_full:
        return b""
    white = _CODED_WHITES.get(primaries, _D65)
    return matrix_profile(white, _CODED_PRIMARIES[primaries], _CODED_GAMMAS[curve])


def numbered_profile(gamma: float | None, points: tuple[float, ...] | None) -> bytes | None:
    """Returns the ICC profile of the PNG chunks `gAMA` and `cHRM`.

    Args:
        gamma: exponent from light to numbers, 0.45455 for most images; None if it is missing.
        points: x and y of white, red, green and blue; None if they are missing.

    Returns:
        None if the numbers are invalid or `gamma` is missing: browsers ignore `cHRM` without
        `gAMA`.
    """
    if gamma is None or not 0.05 <= gamma <= 10:
        return None
    curve = SRGB_GAMMA if abs(gamma - 1 / 2.2) < 0.001 else 1 / gamma
    if points is None or len(points) != 8:
        points = (*_D65, *(value for point in _SRGB for value in point))
    white, *primaries = zip(points[::2], points[1::2], strict=True)
    try:
        return matrix_profile(white, tuple(primaries), curve)
    except (ValueError, ArithmeticError, np.linalg.LinAlgError):
        return None


@functools.lru_cache(maxsize=32)
def matrix_profile(white: Point, primaries: tuple[Point, ...], gamma: float) -> bytes:
    """Returns an ICC profile (version 2, matrix and curve) of an RGB color space.

    Args:
        white: x and y of white.
        primaries: x and y of red, green and blue.
        gamma: exponent from numbers to light, or `SRGB_GAMMA`.

    Raises:
        ValueError: if the points do not span a color space.
    """
    columns = np.array([_xyz(point) for point in primaries]).T
    scale = np.linalg.solve(columns, _xyz(white))
    if not np.isfinite(scale).all() or (scale <= 0).any():
        raise ValueError("the points do not span a color space")
    source, target = _BRADFORD @ _xyz(white), _BRADFORD @ _D50
    adapted = np.linalg.inv(_BRADFORD) @ np.diag(target / source) @ _BRADFORD @ (columns * scale)
    tags: dict[bytes, bytes] = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 1) + b"\0" * 79,
        b"wtpt": _xyz_tag(_D50),
        **{name: _xyz_tag(adapted[:, k]) for k, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))},
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), _curve_tag(gamma)),
        b"cprt": b"text\0\0\0\0\0",
    }
    offset = 132 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        table += struct.pack(">4sII", name, offset + len(body), len(content))
        body += content + b"\0" * (-len(content) % 4)
    head = struct.pack(
        ">I4sI4s4s4s12s4s4sI4sI8xI3I4s44x",
        *(offset + len(body), b"", 0x02100000, b"mntr", b"RGB ", b"XYZ ", b"", b"acsp", b""),
        *(0, b"", 0, 0, 0xF6D6, 0x10000, 0xD32D, b""),
    )
    return head + table + body


def _xyz(point: Point) -> NDArray[np.float64]:
    x, y = point
    return np.array([x / y, 1.0, (1 - x - y) / y])


def _xyz_tag(values: NDArray[np.float64]) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(float(one) * 65536) for one in values))


def _curve_tag(gamma: float) -> bytes:
    if gamma != SRGB_GAMMA:
        return b"curv\0\0\0\0" + struct.pack(">IH2x", 1, min(round(gamma * 256), 65535))
    numbers = np.linspace(0, 1, 1024)
    light = np.where(numbers <= 0.04045, numbers / 12.92, ((numbers + 0.055) / 1.055) ** 2.4)
    return b"curv\0\0\0\0" + struct.pack(">I1024H", 1024, *np.rint(light * 65535).astype(int))
