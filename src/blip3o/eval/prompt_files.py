"""Published prompt files: bundled or given by the user, and checked by their hash."""

import dataclasses
import hashlib
from pathlib import Path

from blip3o.core.errors import UsageError, shown
from blip3o.core.files import read_text

BUNDLED = Path(__file__).parent / "prompts"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptFile:
    """A published file of prompts or questions.

    Args:
        name: its published name, for messages; for a bundled file the path in `BUNDLED`.
        sha256: hash of the published file; None if only `git_blob` is known.
        git_blob: git's hash of the published file.
        is_bundled: whether the package contains it.
        origin: where the user gets it, "github.com/OWNER/NAME PATH".
    """

    name: str
    sha256: str | None = None
    git_blob: str | None = None
    is_bundled: bool = False
    origin: str = ""

    def read(self, path: str | None = None, *, allow_changed: bool = False) -> "ReadFile":
        """Returns the text.

        Args:
            path: the user's file; None reads the bundled one.
            allow_changed: accepts another file; the results then say so.

        Raises:
            UsageError: if the file is missing, or is not the published one.
        """
        if path is None:
            if not self.is_bundled:
                raise UsageError(f"{self.name} is not part of blip3o: get it from {self.origin}")
            file = BUNDLED / self.name
        else:
            file = Path(path)
        text = read_text(file, self.name)
        data = file.read_bytes()
        sha256 = hashlib.sha256(data).hexdigest()
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
        is_published = sha256 == self.sha256 or (
            self.git_blob is not None and blob == self.git_blob
        )
        if not is_published and not allow_changed:
            raise UsageError(
                f"{file} is not the published {self.name}: its hash is {sha256[:16]}..., expected "
                f"{(self.sha256 or self.git_blob or '')[:16]}...; changed_prompts=true scores it "
                "under another title"
            )
        return ReadFile(text=text, sha256=sha256, is_published=is_published)


@dataclasses.dataclass(frozen=True)
class ReadFile:
    """The content of a prompt file.

    Args:
        text: the text.
        sha256: hash of the file.
        is_published: whether it is the published file.
    """

    text: str
    sha256: str
    is_published: bool


def source_file(folder: Path, name: object, what: str) -> Path:
    """Returns the path of an input image that a file of a benchmark names.

    Raises:
        UsageError: if there is no such file inside the folder.
    """
    if not isinstance(name, str) or not name:
        raise UsageError(f"{what} names no image: {shown(name)}")
    file = folder / name
    if ".." in Path(name).parts or Path(name).is_absolute():
        raise UsageError(f"{what} names an image outside its folder: {shown(name)}")
    if not file.is_file():
        raise UsageError(f"{what}: no such file: {file}; unpack the images of the benchmark there")
    return file
