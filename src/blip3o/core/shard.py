"""Division of work among processes and machines that share a folder."""

import dataclasses

from blip3o.core.errors import UsageError, shown


@dataclasses.dataclass(frozen=True)
class Shard:
    """The part of a list of work that one process does: every n-th piece.

    Args:
        number: number of the part, from 1.
        count: number of parts.
    """

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Returns the shard that a text such as "2/3" names.

        Raises:
            UsageError: for another form, or a number that is not from 1 to the count.
        """
        number, slash, count = text.partition("/")
        if not (slash and number.isdecimal() and count.isdecimal()):
            raise UsageError(f"--shard must be I/N, such as 1/2, got {shown(text)}")
        if not 1 <= int(number) <= int(count):
            raise UsageError(f"--shard I/N needs I from 1 to N, got {shown(text)}")
        return cls(int(number), int(count))


WHOLE = Shard()
"""All of the work."""
