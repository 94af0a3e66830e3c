"""Reads, writes and overrides configs, which are frozen dataclasses of plain data.

A field that holds a component is annotated with the base type of that component and names its table
in the field's metadata (`component("blip3o.models.generators:GENERATORS")`). The `kind` in its data
selects the class.

The type of a field decides how a value written as text (`path=value`, YAML) is read: a text stays
as it is, numbers are decimal, and lists and mappings are YAML. See `blip3o.core.scalars`.
"""

import dataclasses
import importlib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol, TypeVar, overload

from blip3o.core.bounds import check_bounds
from blip3o.core.dotted import Open, assign, join, set_item, text_on_path
from blip3o.core.errors import UsageError, shown, unknown_name
from blip3o.core.files import expanded, read_text, write_atomic
from blip3o.core.registry import Registry
from blip3o.core.scalars import Text, convert, convert_plain


class Dataclass(Protocol):
    """An instance of any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]


T = TypeVar("T")
ConfigT = TypeVar("ConfigT", bound=Dataclass)

LocalPath = Annotated[str, "path"]
"""A file or folder; a leading `~` is the home folder."""


@overload
def component(registry: str) -> T: ...
@overload
def component(registry: str, *, default: T) -> T: ...
def component(registry: str, *, default: object = dataclasses.MISSING) -> object:
    """Returns a dataclass field whose value is a config from a registry.

    The declared type is that of the field's value, as for `dataclasses.field`.

    Args:
        registry: "package.module:TABLE", imported only when a config is read from data.
        default: the default config; without one, the field is required.
    """
    return dataclasses.field(default=default, metadata={"registry": registry})


def to_dict(config: object) -> dict[str, Any]:
    """Returns a config as plain dicts, lists and scalars, which YAML and JSON can hold.

    Args:
        config: an instance of a dataclass, or a mapping that may hold configs.

    Raises:
        TypeError: if it is anything else.
    """
    data = _plain(config)
    if not isinstance(data, dict):
        raise TypeError(f"a config is needed, got {shown(config)}")
    return data


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value


def from_dict(cls: type[ConfigT], data: object, path: str = "") -> ConfigT:
    """Returns a config built from plain data; strict about keys and types.

    Args:
        cls: the dataclass to build.
        data: a mapping that holds its fields as plain data.
        path: dotted path of this config in its parent, for error messages.

    Raises:
        UsageError: for an unknown or missing key or a value of the wrong type; names its path.
    """
    if not isinstance(data, Mapping):
        raise UsageError(f"{path or cls.__name__} must be a mapping, got {shown(data)}")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in data:
        if key not in fields:
            raise unknown_name("config key", join(path, key), [join(path, n) for n in fields])
    hints = typing.get_type_hints(cls, include_extras=True)
    values = {
        key: _convert(hints[key], value, fields[key].metadata.get("registry"), join(path, key))
        for key, value in data.items()
    }
    for name, field in fields.items():
        is_required = field.default is dataclasses.MISSING is field.default_factory
        if is_required and name not in values:
            raise UsageError(f"config key {join(path, name)} is required")
    try:
        return cls(**values)
    except (ValueError, ArithmeticError) as error:  # a check refused a value or divided by zero
        raise UsageError(f"{path or cls.__name__}: {error}") from error


def override(config: ConfigT, assignments: Sequence[str]) -> ConfigT:
    """Returns a config with dotted `path.to.field=value` assignments applied in order.

    The result is checked only after all assignments, so settings that depend on each other can
    change together. The type of the field decides how a value is read:

    - a text is used literally, with its spaces and `#`; a value that is quoted as a whole loses its
      quotes, and `null` is None in a field that accepts None;
    - numbers are decimal: `010` is 10, and `0x10` is refused;
    - lists and mappings are YAML: `[a, b]`, `{a: 1}`.

    Another `kind` of a component starts from the defaults of that kind, not from the old settings.

    Args:
        config: the config to start from; it is not changed.
        assignments: texts such as "train.steps=50" or "data.sources.0.weight=2".

    Raises:
        UsageError: for an assignment without "=", an unknown path, a value of the wrong type, or a
            `kind` after other settings of its component, which it would drop.
    """
    if not assignments:
        return config
    data = to_dict(config)
    done: list[str] = []
    for assignment in [assignments] if isinstance(assignments, str) else assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise UsageError(f"override {assignment!r} is not of the form path.to.field=value")
        data = _assign_text(type(config), data, path.strip(), _given(text), done)
        done.append(path.strip())
    return from_dict(type(config), data)


def evolve(config: ConfigT, changes: Mapping[str, object]) -> ConfigT:
    """Returns a config with dotted paths replaced, e.g. `evolve(cfg, {"train.steps": 10})`.

    Args:
        config: the config to start from; it is not changed.
        changes: dotted path -> new value, which is plain data or a config.

    Raises:
        UsageError: for an unknown path or a value of the wrong type.
    """
    data = to_dict(config)
    for path, value in changes.items():
        assign(data, path, _plain(value))
    return from_dict(type(config), data)


def save_yaml(config: object, path: Path) -> None:
    """Writes a config as YAML, readable by `read_yaml` and `from_dict`."""
    write_atomic(path, dump_yaml(config))


def dump_yaml(config: object) -> str:
    """Returns a config, or plain data that may hold configs, as YAML."""
    from blip3o.core.plain import format_yaml

    return format_yaml(_plain(config))


def read_yaml(path: Path) -> object:
    """Returns the data of a YAML file for `from_dict`: dicts, lists and `Text`s.

    Raises:
        UsageError: if the file cannot be read, is not YAML, or repeats a key in one mapping.
    """
    from blip3o.core.plain import parse_yaml

    text = read_text(path)
    try:
        data = parse_yaml(text)
    except UsageError as error:
        raise UsageError(f"{path} is not a YAML file: {error}") from error
    if isinstance(data, Text):
        raise UsageError(f"{path} is not a YAML file of settings: it holds a single text")
    return data


def _given(text: str) -> Text:
    """Returns the value of an assignment; only `null` means None."""
    from blip3o.core.plain import unquoted

    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"the value {text!r} is not UTF-8 text") from error
    inner = unquoted(text)
    return Text(text, nulls=("null",)) if inner is None else Text(inner, is_plain=False)


def _assign_text(
    cls: type[Dataclass], data: object, path: str, value: Text, done: Sequence[str]
) -> object:
    """Returns the data with a value assigned, after parsing any text on its path.

    Args:
        cls: the class of the config.
        data: the config as plain data, which may be changed.
        path: dotted path of the value.
        value: the value.
        done: paths of the earlier assignments.
    """
    if text_on_path(data, path) is not None:
        try:
            data = to_dict(from_dict(cls, data))
        except UsageError:  # not complete yet
            from blip3o.core.plain import parse_value

            while (found := text_on_path(data, path)) is not None:
                holder, key, text = found
                opened = parse_value(text)
                set_item(holder, key, Open(opened) if isinstance(opened, dict) else opened)
                if isinstance(opened, Text):
                    break
    place, _, key = path.rpartition(".")
    if key == "kind" and _has_other_kind(cls, data, place, value.text.strip()):
        if lost := [one for one in done if one.startswith(f"{place}.")]:
            raise UsageError(f"{path}={value.text} drops {lost[0]}: put {path} before it")
        path, new = place, Open(kind=value)
    else:
        new = value
    assign(data, path, new)
    return data


def _has_other_kind(cls: type[Dataclass], data: object, path: str, kind: str) -> bool:
    """Returns whether a dotted path leads to a component of another kind, or to none yet."""
    hint: object = cls
    registry: str | None = None
    for key in path.split("."):
        config = _class_of(hint, registry, data)
        if config is not None:
            fields = {field.name: field for field in dataclasses.fields(config)}
            if key not in fields:
                return False
            hint, registry = (
                typing.get_type_hints(config)[key],
                fields[key].metadata.get("registry"),
            )
            data = data.get(key) if isinstance(data, Mapping) else None
        elif isinstance(data, list):  # all of its items have one type
            hint = next(iter(typing.get_args(hint)), None)
            data = data[int(key)] if key.isdecimal() and int(key) < len(data) else None
        else:
            return False
    if registry is None:
        return False
    return data is None or (isinstance(data, Mapping) and _kind_of(data) != kind)


def _class_of(hint: object, registry: str | None, data: object) -> type[Dataclass] | None:
    """Returns the class of a config at some place of the data; None for other data."""
    if registry is not None and isinstance(data, Mapping):
        kind = _kind_of(data)
        table = _table(registry)
        return table.get(kind) if isinstance(kind, str) and kind in table.names() else None
    for one in (hint, *typing.get_args(hint)):
        if isinstance(one, type) and dataclasses.is_dataclass(one) and isinstance(data, Mapping):
            return one
    return None


def _kind_of(data: Mapping[str, object]) -> object:
    kind = data.get("kind")
    return kind.text.strip() if isinstance(kind, Text) else kind


def _table(registry: str) -> "Registry[type[Dataclass]]":
    module, _, name = registry.partition(":")
    return getattr(importlib.import_module(module), name)


def _convert(hint: object, value: object, registry: str | None, path: str) -> object:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        if hint == LocalPath:
            return _path(str(_convert(args[0], value, registry, path)), path)
        return _scalar(args[0], value, path, bounds=hint)
    if origin in (typing.Union, types.UnionType):
        inner = [arg for arg in args if arg is not type(None)]
        if type(None) in args and _is_none(value, inner):
            return None
        if len(inner) == 1:
            return _convert(inner[0], value, registry, path)
        return _convert_union(inner, value, path)
    if registry is not None or origin in (tuple, dict) or dataclasses.is_dataclass(hint):
        value = _opened(value, path)
    if origin is tuple:
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise UsageError(f"{path} must be a list, got {shown(value)}; write it as [a, b]")
        item_hints = args[:1] * len(value) if args[-1] is Ellipsis else args
        if len(item_hints) != len(value):
            raise UsageError(f"{path} must have {len(item_hints)} values, got {len(value)}")
        return tuple(
            _convert(item_hint, item, registry, f"{path}.{i}")
            for i, (item_hint, item) in enumerate(zip(item_hints, value, strict=True))
        )
    if registry is not None:
        return _component_from_dict(registry, value, path)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return from_dict(hint, value, path)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise UsageError(f"{path} must be a mapping, got {shown(value)}")
        return {k: _convert(args[1], v, None, join(path, k)) for k, v in value.items()}
    return _scalar(hint, value, path)


def _scalar(hint: object, value: object, path: str, bounds: object = None) -> object:
    if isinstance(value, Text) and hint is not str and value.text.lstrip()[:1] in ("[", "{"):
        value = _opened(value, path)
    is_text = isinstance(value, Text)
    read = convert(hint, value, path) if is_text else convert_plain(hint, value, path)
    check_bounds(bounds, read, path)
    return read


def _path(text: str, path: str) -> str:
    try:
        return expanded(text)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def _is_none(value: object, hints: Sequence[object]) -> bool:
    if not isinstance(value, Text):
        return value is None
    takes_texts = any(hint is str or typing.get_args(hint)[:1] == (str,) for hint in hints)
    return value.is_null_text if takes_texts else value.is_null


def _opened(value: object, path: str) -> object:
    """Returns the list or mapping that a text holds as YAML; any other value unchanged."""
    if not isinstance(value, Text) or not value.is_plain:
        return value
    from blip3o.core.plain import parse_value

    try:
        return parse_value(value.text)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def _convert_union(hints: Sequence[object], value: object, path: str) -> object:
    for hint in hints:
        try:
            return _convert(hint, value, None, path)
        except UsageError:
            continue
    raise UsageError(f"{path} does not accept {shown(value)}")


def _component_from_dict(registry: str, value: object, path: str) -> object:
    table = _table(registry)
    if not isinstance(value, Mapping) or "kind" not in value:
        raise UsageError(f"{path} must be a mapping with a 'kind' from {table.names()}")
    kind = _kind_of(value)
    if not isinstance(kind, str):
        raise UsageError(f"{path}.kind must be one of {table.names()}, got {shown(kind)}")
    return from_dict(table.get(kind), {**value, "kind": kind}, path)
