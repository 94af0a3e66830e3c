"""Resolves hard and symbolic links inside a tar."""

import posixpath

from blip3o.data.sources.tar import FILE, HARD_LINK, Member

_MAX_STEPS = 40
"""Maximum length of a chain of links, as on Linux."""

_Place = tuple[int, bytes]
"""Number of an archive, and a normalized path in it."""


class LinkTable:
    """The links of a shard, and the files that records reach through links.

    Attributes:
        wanted: links that are members of records, each with the number given to `want`.
    """

    def __init__(self) -> None:
        self.wanted: list[tuple[int, Member]] = []
        self._links: dict[_Place, Member] = {}
        self._files: dict[_Place, list[Member]] | None = None

    def note_link(self, member: Member) -> None:
        """Adds a link."""
        if not self.leads_to_itself(member):
            self._links[member.part, _plain(member.name)] = member._replace(header=b"")

    @staticmethod
    def leads_to_itself(member: Member) -> bool:
        """Returns whether a link leads to itself; tar writes such links for repeated files."""
        return member.kind == HARD_LINK and _plain(member.target) == _plain(member.name)

    def want(self, member: Member, number: int) -> None:
        """Requests the file that a link leads to, by adding the link to `wanted`."""
        self.wanted.append((number, member._replace(header=b"")))

    def note_file(self, member: Member) -> None:
        """Adds a file if a wanted link leads to it. Call this when all links are known."""
        if self._files is None:
            ends = [self._end(link) for _, link in self.wanted]
            self._files = {end: [] for end in ends if end is not None}
        if member.kind == FILE:
            found = self._files.get((member.part, _plain(member.name)))
            if found is not None:
                found.append(member)

    def resolve(self, member: Member) -> Member | str:
        """Returns the file that a link leads to, or a description of the broken link."""
        end = self._end(member)
        if end is None:
            return f"{_kind(member)}, which leads in a circle"
        found = (self._files or {}).get(end, [])
        if member.kind == HARD_LINK:  # among files of one name, the last one before the link
            found = [one for one in found if one.offset < member.offset] or found
        if found:
            return found[-1]
        if end[1] == b".." or end[1].startswith((b"../", b"/")):
            return f"{_kind(member)}, which leads out of the shard"
        return f"{_kind(member)}, and the shard holds no such file"

    def _end(self, member: Member) -> _Place | None:
        """Returns the place where a chain of links ends; None if it is a circle."""
        path = self._target(member)
        for _ in range(_MAX_STEPS):
            step = self._first_link(member.part, path)
            if step is None:
                return member.part, path
            link, rest = step
            path = _plain(posixpath.join(self._target(link), rest))
        return None

    def _first_link(self, part: int, path: bytes) -> tuple[Member, bytes] | None:
        """Returns the first link on a path (perhaps a folder), and the rest of the path."""
        place = path.find(b"/")
        while place != -1:
            link = self._links.get((part, path[:place]))
            if link is not None:
                return link, path[place + 1 :]
            place = path.find(b"/", place + 1)
        link = self._links.get((part, path))
        return None if link is None else (link, b"")

    @staticmethod
    def _target(member: Member) -> bytes:
        if member.kind == HARD_LINK:  # names a member; symbolic links are relative to their folder
            return _plain(member.target)
        return _plain(posixpath.join(posixpath.dirname(member.name), member.target))


def _plain(path: bytes) -> bytes:
    return posixpath.normpath(path)


def _kind(member: Member) -> str:
    kind = "hard" if member.kind == HARD_LINK else "symbolic"
    return f"a {kind} link to {member.target.decode(errors='backslashreplace')}"
