"""Maps of weight names that exchange the front of a name, in both directions."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class PrefixMap:
    """Published names to ours and back.

    Args:
        pairs: fronts of names as (published, ours); no front of a side begins another of it.

    Raises:
        ValueError: if one front begins another: a name would have two counterparts.
    """

    pairs: tuple[tuple[str, str], ...]

    def __post_init__(self) -> None:
        for side in zip(*self.pairs, strict=True):
            for front in side:
                if sum(other.startswith(front) for other in side) > 1:
                    raise ValueError(f"{front!r} begins another front: the map has no inverse")

    def ours(self, published: str) -> str | None:
        """Returns our name of a published one; None for a name of no known front."""
        return _exchange(published, self.pairs)

    def published(self, ours: str) -> str | None:
        """Returns the published name of one of ours; None for a name of no known front."""
        return _exchange(ours, tuple((own, other) for other, own in self.pairs))


def _exchange(name: str, pairs: tuple[tuple[str, str], ...]) -> str | None:
    for front, other in pairs:
        if name.startswith(front):
            return other + name.removeprefix(front)
    return None
