"""Reading texts, checking paths, and writing files and folders atomically.

A file or folder is written under a scratch name next to its final path, flushed to the disk and
renamed. A killed process leaves a hidden `.NAME.part`, which the next attempt removes.
"""

import hashlib
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from blip3o.core.errors import UsageError, quoted_number, reason_of
from blip3o.core.texts import decode_text

_LONGEST_NAME = 255
"""Most bytes of a file name on common file systems."""
_LARGEST_TEXT = 64 * 2**20
"""Most bytes of a text file (prompts, settings): a device file may never end."""


def user_cache(name: str) -> Path:
    """Returns the folder of a kind of data that this user may lose; it need not exist."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "blip3o" / name


def write_atomic(path: Path, content: bytes | str, *, is_shared: bool = False) -> None:
    """Writes a complete file or nothing.

    Args:
        path: the file, replaced if it exists. Its folder must exist.
        content: bytes, or text to be written as UTF-8.
        is_shared: whether several processes may write it at the same time; the last one wins.
    """
    with atomic_file(path, is_shared=is_shared) as scratch:
        scratch.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_file(path: Path, *, is_shared: bool = False) -> Iterator[Path]:
    """Yields a scratch file to write, which becomes `path` at the end or is removed on failure.

    The arguments are those of `write_atomic`.
    """
    writer = f".{socket.gethostname()}.{os.getpid()}" if is_shared else ""
    scratch = path.with_name(_scratch_name(path.name, f"{writer}.part"))
    try:
        with naming(path, scratch):
            yield scratch
            flush(scratch)
            os.replace(scratch, path)
    finally:
        with suppress(OSError):  # the name may be invalid
            scratch.unlink(missing_ok=True)


@contextmanager
def naming(path: Path, scratch: Path | None = None) -> Iterator[None]:
    """Adds the name of a file to an `OSError`: a full disk fails a write without naming the file.

    Args:
        path: the file that the block writes.
        scratch: the scratch file that is written in its place.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(scratch)):
            error.filename, error.filename2 = str(path), None
        raise
    except Exception as error:  # from a library that is not written in Python
        number = quoted_number(error)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def _scratch_name(name: str, end: str) -> str:
    scratch = f".{name}{end}"
    if len(os.fsencode(scratch)) <= _LONGEST_NAME or len(os.fsencode(name)) > _LONGEST_NAME:
        return scratch
    return f".{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}{end}"


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields a scratch folder to fill, which becomes `path` at the end or is removed on failure.

    Args:
        path: the folder. An empty folder there is replaced; missing parents are created.

    Raises:
        OSError: if `path` is a folder that is not empty.
    """
    path = path.absolute()
    scratch = path.with_name(_scratch_name(path.name, ".part"))
    shutil.rmtree(scratch, ignore_errors=True)  # left by a killed run
    try:
        scratch.mkdir(parents=True)
        yield scratch
        for one in (*scratch.rglob("*"), scratch):
            flush(one)
        os.replace(scratch, path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def flush(path: Path) -> None:
    """Waits until a file, or the list of a folder's entries, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def home_path(text: str | Path) -> Path:
    """Returns a path with a leading `~` or `~user` replaced by that home folder.

    Args:
        text: the path as the user wrote it; a shell does not expand the `~` of `--out=~/x`.

    Raises:
        UsageError: if the path is empty, is "-", or begins with the home folder of an unknown user.
    """
    return Path(expanded(os.fspath(text)))


def expanded(text: str) -> str:
    """Returns the result of `home_path` as a text; patterns and URLs stay unchanged.

    Raises:
        UsageError: as `home_path`.
    """
    if not text.strip():
        raise UsageError("the name of a file or folder is empty")
    if text == "-":
        raise UsageError(
            "- is not a file name here; use ./- for a file of that name, /dev/stdin for "
            "standard input"
        )
    full, start = os.path.expanduser(text), text.partition("/")[0]
    is_lost = full == text or (start == "~" and os.environ.get("HOME") == "")
    if start.startswith("~") and is_lost and not os.path.lexists(text):
        raise UsageError(f"there is no home folder {start}; for a file of this name use ./{text}")
    return full


def check_plain_name(what: str, name: str) -> None:
    """Checks that a name is valid for exactly one file or folder within any folder.

    Args:
        what: kind of the named thing, for the message.
        name: the name.

    Raises:
        UsageError: if it leads to another folder, is a pattern of several names, or holds invisible
            characters.
    """
    is_hidden = name.startswith(".") or name != name.strip() or not name.isprintable()
    if not name or is_hidden or any(letter in name for letter in "/\\*?[]{}"):
        raise UsageError(
            f"{what} cannot be {name!r}: use letters, digits, dots, dashes and underscores"
        )


def check_no_file(path: Path) -> None:
    """Checks that a path can be a folder, without creating it: another process may do so.

    Args:
        path: the folder; it and its parents need not exist.

    Raises:
        UsageError: if the path or a parent is a file, or if the name is invalid.
    """
    try:
        ways = (path, *path.absolute().parents)
        nearest = next(one for one in ways if one.exists() or one.is_symlink())
        is_folder, is_there = nearest.is_dir(), nearest.exists()
    except OSError as error:
        raise UsageError(f"cannot write to {path}: {reason_of(error)}") from error
    if not is_folder:
        what = "a file" if is_there else "a broken link"
        raise UsageError(f"cannot write to {path}: {nearest} is {what}; give the name of a folder")


def check_folder(path: Path) -> None:
    """Checks before any work that files can be written to a folder; leaves no trace.

    Args:
        path: the folder; it and its parents need not exist.

    Raises:
        UsageError: if it is a file, or cannot be created or written to.
    """
    check_no_file(path)
    made: list[Path] = []
    try:
        for folder in reversed([one for one in (path, *path.parents) if not one.exists()]):
            folder.mkdir(exist_ok=True)
            made.append(folder)
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(b"x")
    except OSError as error:
        raise UsageError(f"cannot write to {path}: {reason_of(error)}") from error
    finally:
        for folder in reversed(made):
            with suppress(OSError):
                folder.rmdir()


def check_file(path: Path) -> None:
    """Checks before any work that a file can be written; leaves no trace.

    Args:
        path: the file; it and its folder need not exist.

    Raises:
        UsageError: if it is a folder, or its folder cannot be written to.
    """
    try:
        if path.is_dir():
            raise UsageError(f"cannot write {path}: it is a folder; give the name of a file")
        path.exists()  # raises if the name is too long
    except OSError as error:
        raise UsageError(f"cannot write {path}: {reason_of(error)}") from error
    check_folder(path.parent)


def read_lines(path: Path, what: str = "") -> list[str]:
    """Returns the lines of a text file.

    Lines end with a newline, optionally after a carriage return. In a file without newlines they
    end with carriage returns, as old editors write them. Other line separators of Unicode belong to
    the text. Arguments and errors are those of `read_text`.
    """
    text = read_text(path, what)
    end = "\n" if "\n" in text else "\r"
    return [line.removesuffix("\r") for line in text.removesuffix(end).split(end)]


def read_text(path: Path, what: str = "") -> str:
    """Returns the text of a file.

    Args:
        path: a file in UTF-8, or in UTF-16 with a byte order mark; the mark is removed. A pipe is
            read to its end.
        what: kind of the content, for error messages ("prompts").

    Raises:
        UsageError: if it cannot be read, is larger than 64 MiB, or is not such a text.
    """
    start = f"cannot read {f'{what} from ' if what else ''}{path}"
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST_TEXT + 1)
    except FileNotFoundError as error:
        raise UsageError(f"{start}: no such file") from error
    except OSError as error:
        raise UsageError(f"{start}: {reason_of(error)}") from error
    if len(data) > _LARGEST_TEXT:
        raise UsageError(f"{start}: it has more than {_LARGEST_TEXT:,} bytes")
    try:
        text = decode_text(data)
    except ValueError as error:
        raise UsageError(f"{start}: {error}") from error
    if "\0" in text:  # UTF-16 without a mark, UTF-32, or not a text at all
        raise UsageError(f"{start}: it is not a text in UTF-8 (it holds zero bytes)")
    return text


def file_sha256(path: Path) -> str:
    """Returns the hash of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_room(folder: Path, need_bytes: int, what: str, advice: str) -> None:
    """Checks that files fit on the disk before hours of work produce them.

    Args:
        folder: their folder; it need not exist.
        need_bytes: their least total size.
        what: kind of the files, for the message.
        advice: the alternative to freeing space, for the message.

    Raises:
        UsageError: if the disk has less free space.
    """
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        free = shutil.disk_usage(place).free
    except OSError:  # the later write reports the fault
        return
    if need_bytes > free:
        raise UsageError(
            f"{what} need about {size_text(need_bytes)}, and {size_text(free)} are free on the "
            f"disk of {folder}: make room, or {advice}"
        )


def size_text(num_bytes: float) -> str:
    """Returns a readable size, such as "1.3 GB"."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "bytes" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"
