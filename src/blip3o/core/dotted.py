"""Dotted keys such as `data.sources.0.weight`: finds and assigns values in plain data."""

from blip3o.core.errors import UsageError, shown, unknown_name
from blip3o.core.scalars import Text


def join(path: str, key: str) -> str:
    """Returns the dotted key of an item of the data at `path`, which is empty for the whole."""
    return f"{path}.{key}" if path else str(key)


class Open(dict[str, object]):
    """A mapping that an assignment wrote: later assignments may add missing keys."""


def text_on_path(data: object, path: str) -> tuple[object, str, str] | None:
    """Returns the first parent of a dotted key that is a text: its holder, key and content."""
    for name in path.split(".")[:-1]:
        if isinstance(data, list) and name.isdecimal() and int(name) < len(data):
            child = data[int(name)]
        elif isinstance(data, dict) and name in data:
            child = data[name]
        else:
            return None
        if isinstance(child, Text):
            return data, name, child.text
        data = child
    return None


def assign(data: object, path: str, value: object) -> None:
    """Sets the value at a dotted key.

    Args:
        data: dicts and lists, changed in place.
        path: the dotted key. It must exist, except within an `Open` mapping.
        value: the new value.

    Raises:
        UsageError: if the key does not exist.
    """
    *parents, last = path.split(".")
    for depth, key in enumerate(parents):
        data = _step(data, key, ".".join(parents[: depth + 1]))
    if not isinstance(data, Open):
        _step(data, last, path)  # the key must exist, so a typo never adds one
    set_item(data, last, value)


def set_item(holder: object, key: str, value: object) -> None:
    """Sets one item of a list or a dict; other data stay unchanged."""
    if isinstance(holder, list):
        holder[int(key)] = value
    elif isinstance(holder, dict):
        holder[key] = value


def _step(data: object, key: str, path: str) -> object:
    if isinstance(data, list):
        if key.isdecimal() and int(key) < len(data):
            return data[int(key)]
        allowed = f"an index from 0 to {len(data) - 1}" if data else "left out: the list is empty"
        raise UsageError(f"config key {path} must be {allowed}")
    if not isinstance(data, dict):
        raise UsageError(f"config key {path} does not exist: its parent is the value {shown(data)}")
    if key not in data:
        prefix = path[: -len(key)]
        raise unknown_name("config key", path, [prefix + name for name in data])
    return data[key]
