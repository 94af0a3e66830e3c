"""Squares of feature tokens as one transformer token, in the released network's orders."""

from torch import Tensor


def to_patches(tokens: Tensor, grid: tuple[int, int], patch_size: int) -> Tensor:
    """Returns patches in row-major order, each ordered (channel, row, column), [B, M, C p p].

    Args:
        tokens: row-major feature tokens, [B, rows * columns, C].
        grid: rows and columns.
        patch_size: side of a patch (p), which divides both.
    """
    if patch_size == 1:
        return tokens
    rows, columns = grid[0] // patch_size, grid[1] // patch_size
    blocks = tokens.unflatten(1, (rows, patch_size, columns, patch_size))
    return blocks.permute(0, 1, 3, 5, 2, 4).flatten(3).flatten(1, 2)


def from_patches(patches: Tensor, grid: tuple[int, int], patch_size: int) -> Tensor:
    """Returns the feature tokens of patches, each ordered (row, column, channel).

    Args:
        patches: patches in row-major order, [B, M, p p C].
        grid: rows and columns of the feature tokens.
        patch_size: side of a patch (p).
    """
    if patch_size == 1:
        return patches
    rows, columns = grid[0] // patch_size, grid[1] // patch_size
    blocks = patches.unflatten(2, (patch_size, patch_size, -1)).unflatten(1, (rows, columns))
    return blocks.transpose(2, 3).flatten(1, 4)
