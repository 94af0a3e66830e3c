"""Reads the images that a row of a list refers to: one or several paths, data URIs or bytes.

The formats are those of published data: LLaVA (`image`), interleaved sets (`images`, several),
Hugging Face (`file_name`, `{"path": ..., "bytes": ...}`) and chat messages with image parts.
"""

import base64
import itertools
import os
import re
import unicodedata
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from blip3o.core.types import IMAGE_MARK
from blip3o.data.sources.files import is_remote, read_file
from blip3o.data.sources.names import IMAGE_SUFFIXES
from blip3o.data.sources.plain_files import read_plain

ReadImage = Callable[[object], bytes]

_NAMES = ("image", "images")
_PATH_NAMES = (
    *("file_name", "image_path", "img_path", "image_file", "image_name", "filename", "img"),
    "image_url",
)
"""Further field names, if no field of `_NAMES` has a value; the value must end like an image."""
_CONVERSATIONS = ("conversations", "messages")
_ADDRESS = re.compile(r"\s*(?!file:)[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_PART_TYPES = ("image", "image_url", "input_image")
_TAG = re.compile(r"<img>\s*([^<>\n]+?)\s*</img>")
"""An image inside the text of a turn, as in lists for Qwen-VL."""


def image_role(number: int) -> str:
    """Returns the role of a record's n-th image: "image", "image_2", "image_3"."""
    return "image" if number == 0 else f"image_{number + 1}"


def num_images(files: Mapping[str, bytes]) -> int:
    """Returns how many images a record has that are not the source or target of an edit."""
    return next(number for number in itertools.count() if image_role(number) not in files)


def take_images(row: Mapping[str, Any], read: ReadImage) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Returns the images of a row by role, and the row's other fields.

    `source` and `target` are images if both refer to one (an edit); otherwise they are fields.

    Args:
        row: one record of a list.
        read: returns the bytes of an image reference.

    Raises:
        ValueError: if the row names its images in two ways, or one of them is not an image file.
        OSError: if one of them cannot be read.
    """
    fields = dict(row)
    files: dict[str, bytes] = {}
    edit = {role: _references(fields.get(role)) or [] for role in ("source", "target")}
    # In a row with `image`, the field `source` is more likely the name of a data set.
    is_edit = not fields.get("image") or all(
        map(_looks_like_image, itertools.chain(*edit.values()))
    )
    if all(edit.values()) and is_edit:
        for role, (reference, *others) in edit.items():
            if others:
                raise ValueError(f"{role!r} names several images; an edit has one")
            files[role] = read(reference)
            del fields[role]
    wanted: list[object] = []
    for name in _names_of_images(fields):
        some = _references(fields[name])
        if some is None or (files and name in _PATH_NAMES):
            continue
        del fields[name]
        if wanted and some and some != wanted:
            raise ValueError("'image' and 'images' name different images; keep one of them")
        wanted = some or wanted
    in_parts = list(_take_parts(fields, has_tags=not wanted))
    if wanted and in_parts:
        raise ValueError("the row names images both in a field and in its messages; keep one")
    for number, reference in enumerate(wanted or in_parts):
        files[image_role(number)] = read(reference)
    return files, fields


def read_reference(reference: object, base: str) -> bytes:
    """Returns the bytes of an image that a list refers to.

    Args:
        reference: a path (absolute or relative to `base`), a `file://` or data URI, or an object
            with `bytes` or `data` (base64), `path` or `url`.
        base: the folder or address that paths start from.

    Raises:
        ValueError: if it is not an image file, or an address outside of the list's own store.
        OSError: if there is no such file or it cannot be read.
        UsageError: if a remote image cannot be reached.
    """
    if isinstance(reference, Mapping):
        data = reference.get("bytes") or reference.get("data")
        if isinstance(data, str):
            return _from_base64(data)
    name = _name_in(reference)
    if name.lstrip()[:5].lower() == "data:":
        return _from_data_uri(name)
    if is_remote(base):
        if is_remote(name) or name.startswith("/"):
            raise ValueError(f"the path of the image {name!r:.200} is not relative to its list")
        return read_file(f"{base}/{name}")
    return read_plain(file_of(name, base))


def file_of(reference: object, base: str) -> str:
    """Returns the local file of a reference.

    Args:
        reference: as for `read_reference`, but not the image's own bytes.
        base: the local folder that paths start from.

    Raises:
        ValueError: if it is a remote address.
        OSError: if there is no such file.
    """
    name = _name_in(reference)
    if "://" in name and _ADDRESS.match(name):
        raise ValueError(
            f"the image {name.strip()!r:.200} is an address; download it and give its path"
        )
    return _existing(name, base)


def _name_in(reference: object) -> str:
    if isinstance(reference, Mapping):
        reference = next((reference[k] for k in ("path", "url") if reference.get(k)), "")
    if not isinstance(reference, str):
        raise ValueError(f"an image reference is of type {type(reference).__name__}, not a path")
    return reference


def _names_of_images(fields: Mapping[str, Any]) -> list[str]:
    """Returns the fields of a row that refer to its images."""
    named = [name for name in _NAMES if name in fields]
    if any(_references(fields[name]) for name in named):
        return named
    for name in _PATH_NAMES:
        if isinstance(fields.get(name), str) and _looks_like_image(fields[name]):
            return [*named, name]
    return named


def _looks_like_image(reference: object) -> bool:
    if not isinstance(reference, str):
        return True
    return reference.strip().lower().endswith(IMAGE_SUFFIXES) or reference[:5].lower() == "data:"


def _references(value: object) -> list[object] | None:
    """Returns the image references in a field's value; None if the value is something else."""
    if value is None or value == "":
        return []
    if isinstance(value, list):
        some = [_references(one) for one in value]
        return None if None in some else [one for found in some for one in found or ()]
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping) and any(isinstance(value.get(k), str) for k in _KEYS):
        return [value]
    if isinstance(value, Mapping) and any(k in value for k in _KEYS):
        return []  # {"path": null, "bytes": null}
    return None


_KEYS = ("bytes", "path", "url", "data")


def _take_parts(fields: dict[str, Any], *, has_tags: bool) -> Iterator[object]:
    """Yields the references in a row's messages and replaces them by bare parts or image marks.

    Args:
        fields: the fields of the row; changed in place.
        has_tags: whether `<img>a.png</img>` in a text refers to an image.
    """
    for name in _CONVERSATIONS:
        turns = fields.get(name)
        if not isinstance(turns, list):
            continue
        left: list[Any] = []
        for turn in turns:
            content = turn.get("content", turn.get("value")) if isinstance(turn, dict) else None
            name_of_content = "content" if isinstance(turn, dict) and "content" in turn else "value"
            if isinstance(content, str) and has_tags:
                tags = _TAG.findall(content)
                if tags and all(map(_looks_like_image, tags)):
                    yield from tags
                    turn = {**turn, name_of_content: _TAG.sub(IMAGE_MARK, content)}
            if not isinstance(content, list):
                left.append(turn)
                continue
            parts = []
            for part in content:
                is_image = isinstance(part, dict) and part.get("type") in _PART_TYPES
                if is_image:
                    yield from _part_reference(part)
                parts.append({"type": "image"} if is_image else part)
            left.append({**turn, name_of_content: parts})
        fields[name] = left


def _part_reference(part: Mapping[str, object]) -> list[object]:
    """Returns the references of an image part; empty if the row has a field for the images."""
    given = [part.get(name) for name in ("image_url", "image", "url", "path", "source")]
    return next((found for one in given if (found := _references(one))), [])


def _existing(reference: str, base: str) -> str:
    """Returns the file that a path refers to, in its literal or another common spelling.

    Lists may come from Windows or macOS, or hold `file://` addresses. The literal path is tried
    first, and the first existing file counts.
    """
    for candidate in itertools.chain([reference], _spellings(reference)):
        path = os.path.join(base, candidate)
        if candidate and os.path.lexists(path):
            return path
    raise FileNotFoundError(f"no such image: {next(_spellings(reference))!r:.200} in {base}")


def _spellings(reference: str) -> Iterator[str]:
    paths = [reference, reference.strip()]
    if paths[1][:5].lower() == "file:":
        address = urllib.parse.urlsplit(paths[1])
        paths = [urllib.parse.unquote(address.path)]
    paths += [one.replace("\\", "/") for one in paths]
    paths += [urllib.parse.unquote(one) for one in paths]
    if paths[0].startswith("~"):
        paths.append(os.path.expanduser(paths[0]))
    for one in dict.fromkeys(paths):
        yield from dict.fromkeys((one, *(unicodedata.normalize(f, one) for f in ("NFC", "NFD"))))


def _from_data_uri(uri: str) -> bytes:
    head, comma, body = uri.strip().partition(",")
    if not comma:
        raise ValueError("a data URI without a comma")
    if head.lower().rstrip().endswith(";base64"):
        return _from_base64(urllib.parse.unquote(body))
    return urllib.parse.unquote_to_bytes(body)


def _from_base64(text: str) -> bytes:
    """Returns decoded bytes; line breaks, the URL alphabet and missing padding are accepted."""
    plain = "".join(text.split()).rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except ValueError as error:
        raise ValueError(f"an image in base64 is damaged: {error}") from error
