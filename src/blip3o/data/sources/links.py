"""Hard and symbolic links inside a tar: which member each of them leads to."""

import posixpath

from blip3o.data.sources.tar import FILE, HARD_LINK, Member

_MAX_STEPS = 40
"""Most links on one way, as the system allows."""

_Place = tuple[int, bytes]
"""Number of an archive, and a path in it without `.` and `..`."""


class LinkTable:
    """The links of a shard, and of its files those that a record reaches by one.

    Attributes:
        wanted: links that are members of records, each with a number of its owner's.
    """

    def __init__(self) -> None:
        self.wanted: list[tuple[int, Member]] = []
        self._links: dict[_Place, Member] = {}
        self._files: dict[_Place, list[Member]] | None = None

    def note_link(self, member: Member) -> None:
        """Takes note of a link.

        Args:
            member: a hard or symbolic link.
        """
        if not self.is_of_itself(member):
            self._links[member.part, _plain(member.name)] = member._replace(header=b"")

    @staticmethod
    def is_of_itself(member: Member) -> bool:
        """Returns whether this is how tar writes a file that it was given twice.

        Args:
            member: a link.
        """
        return member.kind == HARD_LINK and _plain(member.target) == _plain(member.name)

    def want(self, member: Member, number: int) -> None:
        """Asks for the file behind a link.

        Args:
            member: the link.
            number: handed back with it.
        """
        self.wanted.append((number, member._replace(header=b"")))

    def note_file(self, member: Member) -> None:
        """Takes note of a file, if a wanted link leads to it; called when all links are known.

        Args:
            member: any.
        """
        if self._files is None:
            ends = [self._end(link) for _, link in self.wanted]
            self._files = {end: [] for end in ends if end is not None}
        if member.kind == FILE:
            found = self._files.get((member.part, _plain(member.name)))
            if found is not None:
                found.append(member)

    def resolve(self, member: Member) -> Member | str:
        """Returns the file behind a link, or what the link is instead.

        Args:
            member: the link.
        """
        end = self._end(member)
        if end is None:
            return f"{_kind(member)}, which leads in a circle"
        found = (self._files or {}).get(end, [])
        if member.kind == HARD_LINK:  # of several files with one name that which was there by then
            found = [one for one in found if one.offset < member.offset] or found
        if found:
            return found[-1]
        if end[1] == b".." or end[1].startswith((b"../", b"/")):
            return f"{_kind(member)}, which leads out of the shard"
        return f"{_kind(member)}, and the shard holds no such file"

    def _end(self, member: Member) -> _Place | None:
        """Returns where a chain of links ends, None if it does not."""
        path = self._target(member)
        for _ in range(_MAX_STEPS):
            step = self._first_link(member.part, path)
            if step is None:
                return member.part, path
            link, rest = step
            path = _plain(posixpath.join(self._target(link), rest))
        return None

    def _first_link(self, part: int, path: bytes) -> tuple[Member, bytes] | None:
        """Returns the first link on a path, which may be a folder, and the path behind it."""
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
        if member.kind == HARD_LINK:  # names a member; a symbolic link names a place beside itself
            return _plain(member.target)
        return _plain(posixpath.join(posixpath.dirname(member.name), member.target))


def _plain(path: bytes) -> bytes:
    return posixpath.normpath(path)


def _kind(member: Member) -> str:
    kind = "hard" if member.kind == HARD_LINK else "symbolic"
    return f"a {kind} link to {member.target.decode(errors='backslashreplace')}"
