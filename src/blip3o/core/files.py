"""Files and folders that appear under their names only when they are whole.

They are written under a scratch name beside the place, flushed to the disk and renamed. What a
killed process leaves behind is hidden (`.NAME.part`) and goes at the next try.
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
"""Bytes of a name on the file systems in use."""
_LARGEST_TEXT = 64 * 2**20
"""Bytes of a text that is read at once: prompts and settings. A device file has no end."""


def write_atomic(path: Path, content: bytes | str, *, is_shared: bool = False) -> None:
    """Writes a file whole or not at all.

    Args:
        path: where to; replaced. Its folder must exist.
        content: bytes, or text to be written as UTF-8.
        is_shared: several processes may write it at once; the last one wins.
    """
    with atomic_file(path, is_shared=is_shared) as scratch:
        scratch.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_file(path: Path, *, is_shared: bool = False) -> Iterator[Path]:
    """Yields a scratch file to write; it becomes `path` at the end, or goes if anything fails.

    Args:
        path: as in `write_atomic`.
        is_shared: as in `write_atomic`.
    """
    writer = f".{socket.gethostname()}.{os.getpid()}" if is_shared else ""
    scratch = path.with_name(_scratch_name(path.name, f"{writer}.part"))
    try:
        with naming(path, scratch):
            yield scratch
            flush(scratch)
            os.replace(scratch, path)
    finally:
        with suppress(OSError):  # the name may be one that no file can have
            scratch.unlink(missing_ok=True)


@contextmanager
def naming(path: Path, scratch: Path | None = None) -> Iterator[None]:
    """Gives an `OSError` the name of the file that was being written.

    A full disk shows itself when bytes are written, and such an error knows no name.

    Args:
        path: the file.
        scratch: the name under which it is being written.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(scratch)):
            error.filename, error.filename2 = str(path), None
        raise
    except Exception as error:  # of a library that is not written in Python
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
    """Yields a scratch folder to fill; it becomes `path` at the end, or goes if anything fails.

    Args:
        path: where to; an empty folder there is replaced, its parents are created.

    Raises:
        OSError: if there is a folder with something in it.
    """
    path = path.absolute()
    scratch = path.with_name(_scratch_name(path.name, ".part"))
    shutil.rmtree(scratch, ignore_errors=True)  # of a run that was killed
    try:
        scratch.mkdir(parents=True)
        yield scratch
        for one in (*scratch.rglob("*"), scratch):
            flush(one)
        os.replace(scratch, path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def flush(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def home_path(text: str | Path) -> Path:
    """Returns a path with a leading `~` or `~user` as that home folder.

    Args:
        text: as the user wrote it; a shell leaves the `~` of `--out=~/x` as it is.

    Raises:
        UsageError: if it is empty, as the value of an unset variable is, or the system knows no
            such home folder.
    """
    return Path(expanded(os.fspath(text)))


def expanded(text: str) -> str:
    """Returns what `home_path` returns, as a text: patterns and URLs stay as they are.

    Args:
        text: as for `home_path`.

    Raises:
        UsageError: as `home_path`.
    """
    if not text.strip():
        raise UsageError("the name of a file or folder is empty")
    if text == "-":
        raise UsageError(
            "- is no file here; ./- is one of that name, and /dev/stdin is the standard input"
        )
    full, start = os.path.expanduser(text), text.partition("/")[0]
    is_lost = full == text or (start == "~" and os.environ.get("HOME") == "")
    if start.startswith("~") and is_lost and not os.path.lexists(text):
        raise UsageError(f"there is no home folder {start}; for a name that begins so: ./{text}")
    return full


def check_plain_name(what: str, name: str) -> None:
    """Checks that a name can be that of a file or folder in any folder, and of one alone.

    Args:
        what: what is called so, for the message.
        name: the name.

    Raises:
        UsageError: if it leads to another folder, is a pattern of several names, or holds letters
            that cannot be seen.
    """
    is_hidden = name.startswith(".") or name != name.strip() or not name.isprintable()
    if not name or is_hidden or any(letter in name for letter in "/\\*?[]{}"):
        raise UsageError(
            f"{what} cannot be {name!r}: use letters, digits, dots, dashes and underscores"
        )


def check_no_file(path: Path) -> None:
    """Checks that a folder can have a name; another process may be making it.

    Args:
        path: the folder; it and its parents need not exist.

    Raises:
        UsageError: if it or a parent is a file, or the name is one that none can have.
    """
    try:
        ways = (path, *path.absolute().parents)
        nearest = next(one for one in ways if one.exists() or one.is_symlink())
        is_folder, is_there = nearest.is_dir(), nearest.exists()
    except OSError as error:
        raise UsageError(f"cannot write to {path}: {reason_of(error)}") from error
    if not is_folder:
        what = "a file" if is_there else "a link that leads nowhere"
        raise UsageError(f"cannot write to {path}: {nearest} is {what}; give the name of a folder")


def check_folder(path: Path) -> None:
    """Checks, before any work is done, that files can be written to a folder; leaves no trace.

    Args:
        path: the folder; it and its parents need not exist.

    Raises:
        UsageError: if it is a file, or cannot be made or written to.
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
    """Checks, before any work is done, that a file can be written; leaves no trace.

    Args:
        path: the file; it and its folder need not exist.

    Raises:
        UsageError: if it is a folder, or its folder cannot be written to.
    """
    try:
        if path.is_dir():
            raise UsageError(f"cannot write {path}: it is a folder; give the name of a file")
        path.exists()  # here a name that is too long shows itself
    except OSError as error:
        raise UsageError(f"cannot write {path}: {reason_of(error)}") from error
    check_folder(path.parent)


def read_lines(path: Path, what: str = "") -> list[str]:
    """Returns the lines of a text file.

    Lines end at a newline, or a carriage return and a newline; in a file without newlines they end
    at carriage returns, as old editors write. Nothing else ends one: other letters that Unicode
    calls line separators belong to the text.

    Args:
        path: as for `read_text`.
        what: as for `read_text`.

    Raises:
        UsageError: as `read_text`.
    """
    text = read_text(path, what)
    end = "\n" if "\n" in text else "\r"
    return [line.removesuffix("\r") for line in text.removesuffix(end).split(end)]


def read_text(path: Path, what: str = "") -> str:
    """Returns the text of a file.

    Args:
        path: a file in UTF-8, or in UTF-16 with a byte order mark; the mark is dropped. A pipe is
            read to its end.
        what: what is read from it, for error messages ("prompts").

    Raises:
        UsageError: if it cannot be read, is larger than 64 MiB, or is no such text.
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
    if "\0" in text:  # UTF-16 without a mark, UTF-32, or no text at all
        raise UsageError(f"{start}: it is not a text in UTF-8 (it holds zero bytes)")
    return text
