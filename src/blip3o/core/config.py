"""Configs are frozen dataclasses of plain data; this file reads, writes and overrides them.

A field that holds a component is annotated with that component's base and names its table in the
field's metadata (`component("blip3o.models.dit:DITS")`); the `kind` of its data picks the class.
"""

import dataclasses
import importlib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from blip3o.core.errors import UsageError, unknown_name
from blip3o.core.files import write_atomic
from blip3o.core.registry import Registry

ConfigT = TypeVar("ConfigT")


def component(registry: str, **kwargs: Any) -> Any:  # noqa: ANN401  (like dataclasses.field)
    """Returns a dataclass field whose value is a config from a registry.

    Args:
        registry: "package.module:TABLE", imported only when a config is read from data.
        kwargs: passed on to `dataclasses.field` (`default`, `default_factory`).
    """
    return dataclasses.field(metadata={"registry": registry}, **kwargs)


def to_dict(config: Any) -> Any:  # noqa: ANN401
    """Returns a config as plain dicts, lists and scalars (what YAML and JSON can hold)."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, tuple | list):
        return [to_dict(item) for item in config]
    if isinstance(config, Mapping):
        return {key: to_dict(value) for key, value in config.items()}
    return config


def from_dict(cls: type[ConfigT], data: Mapping[str, Any], path: str = "") -> ConfigT:
    """Returns a config built from plain data; strict about keys and types.

    Args:
        cls: the dataclass to build.
        data: its fields as plain data.
        path: where this config sits in its parent, for error messages.

    Raises:
        UsageError: for an unknown or missing key or a value of the wrong type, naming its path.
    """
    if not isinstance(data, Mapping):
        raise UsageError(f"{path or cls.__name__} must be a mapping, got {data!r}")
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in data:
        if key not in fields:
            raise unknown_name("config key", _join(path, key), [_join(path, n) for n in fields])
    hints = typing.get_type_hints(cls)
    values = {
        key: _convert(hints[key], value, fields[key].metadata.get("registry"), _join(path, key))
        for key, value in data.items()
    }
    for name, field in fields.items():
        required = (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        if required and name not in values:
            raise UsageError(f"config key {_join(path, name)} is required")
    try:
        return cls(**values)
    except (ValueError, ArithmeticError) as error:  # a check refused it, or divided by a zero in it
        raise UsageError(f"{path or cls.__name__}: {error}") from error


def override(config: ConfigT, assignments: Sequence[str]) -> ConfigT:
    """Returns a config with dotted `path.to.field=value` assignments applied in order.

    Args:
        config: the config to start from; it is not changed.
        assignments: texts such as "train.steps=50" or "data.sources.0.weight=2"; the value is YAML.

    Raises:
        UsageError: for an assignment without "=", an unknown path or a value of the wrong type.
    """
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise UsageError(f"override {assignment!r} is not of the form path.to.field=value")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UsageError(f"override {assignment!r}: the value is not YAML") from error
        config = evolve(config, {path.strip(): value})
    return config


def evolve(config: ConfigT, changes: Mapping[str, Any]) -> ConfigT:
    """Returns a config with dotted paths replaced, e.g. `evolve(cfg, {"train.steps": 10})`.

    Args:
        config: the config to start from; it is not changed.
        changes: dotted path -> new value, plain data or a config.

    Raises:
        UsageError: for an unknown path or a value of the wrong type.
    """
    data = to_dict(config)
    for path, value in changes.items():
        _assign(data, path, to_dict(value))
    return from_dict(type(config), data)


def save_yaml(config: Any, path: Path) -> None:  # noqa: ANN401
    """Writes a config as YAML, readable by `load_yaml`."""
    write_atomic(path, yaml.safe_dump(to_dict(config), sort_keys=False))


def load_yaml(cls: type[ConfigT], path: Path) -> ConfigT:
    """Returns a config read from a YAML file.

    Args:
        cls: the dataclass to build.
        path: the file.

    Raises:
        UsageError: if the file cannot be read, is no YAML or does not fit the class.
    """
    data = read_yaml(path)
    try:
        return from_dict(cls, data)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def read_yaml(path: Path) -> Any:  # noqa: ANN401  (whatever the file holds)
    """Returns what a YAML file holds, as plain data.

    Args:
        path: the file.

    Raises:
        UsageError: if the file cannot be read or is no YAML.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"no such file: {path}") from error
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not a YAML file: {str(error).splitlines()[0]}") from error


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else str(key)


def _assign(data: Any, path: str, value: Any) -> None:  # noqa: ANN401
    *parents, last = path.split(".")
    for depth, key in enumerate(parents):
        data = _step(data, key, ".".join(parents[: depth + 1]))
    _step(data, last, path)  # the key must exist: a typo never adds one
    if isinstance(data, list):
        data[int(last)] = value
    else:
        data[last] = value


def _step(data: Any, key: str, path: str) -> Any:  # noqa: ANN401
    if isinstance(data, list):
        if key.isdecimal() and int(key) < len(data):
            return data[int(key)]
        allowed = f"an index from 0 to {len(data) - 1}" if data else "left out: the list is empty"
        raise UsageError(f"config key {path} must be {allowed}")
    if not isinstance(data, dict):
        raise UsageError(f"config key {path} does not exist: its parent is the value {data!r}")
    if key not in data:
        prefix = path[: -len(key)]
        raise unknown_name("config key", path, [prefix + name for name in data])
    return data[key]


def _convert(hint: Any, value: Any, registry: str | None, path: str) -> Any:  # noqa: ANN401
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        inner = [arg for arg in args if arg is not type(None)]
        if len(inner) == 1:
            return _convert(inner[0], value, registry, path)
        return _convert_union(inner, value, path)
    if origin is tuple:
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise UsageError(f"{path} must be a list, got {value!r}")
        item_hints = args[:1] * len(value) if args[-1] is Ellipsis else args
        if len(item_hints) != len(value):
            raise UsageError(f"{path} must have {len(item_hints)} values, got {len(value)}")
        return tuple(
            _convert(item_hint, item, registry, f"{path}.{i}")
            for i, (item_hint, item) in enumerate(zip(item_hints, value, strict=True))
        )
    if registry is not None:
        return _component_from_dict(registry, value, path)
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast("type[Any]", hint), value, path)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise UsageError(f"{path} must be a mapping, got {value!r}")
        return {k: _convert(args[1], v, None, _join(path, k)) for k, v in value.items()}
    return _convert_scalar(hint, value, path)


def _convert_union(hints: list[Any], value: Any, path: str) -> Any:  # noqa: ANN401
    for hint in hints:
        try:
            return _convert(hint, value, None, path)
        except UsageError:
            continue
    raise UsageError(f"{path} does not accept {value!r}")


def _component_from_dict(registry: str, value: Any, path: str) -> Any:  # noqa: ANN401
    module, _, table_name = registry.partition(":")
    table: Registry = getattr(importlib.import_module(module), table_name)
    if not isinstance(value, Mapping) or "kind" not in value:
        raise UsageError(f"{path} must be a mapping with a 'kind' out of {table.names()}")
    if not isinstance(value["kind"], str):
        raise UsageError(f"{path}.kind must be one of {table.names()}, got {value['kind']!r}")
    return from_dict(table.get(value["kind"]), value, path)


def _convert_scalar(hint: Any, value: Any, path: str) -> Any:  # noqa: ANN401
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str):  # YAML 1.1 reads 1e-4 as a text
        try:
            return float(value)
        except ValueError:
            pass
    if hint is int and isinstance(value, float) and float(value).is_integer():
        return int(value)
    if hint is Any or hint is object:
        return value
    if typing.get_origin(hint) is typing.Literal:
        if value in typing.get_args(hint):
            return value
        raise UsageError(f"{path} must be one of {list(typing.get_args(hint))}, got {value!r}")
    if isinstance(hint, type) and isinstance(value, hint):
        if hint is int and isinstance(value, bool):
            raise UsageError(f"{path} must be int, got {value!r}")
        return value
    raise UsageError(f"{path} must be {getattr(hint, '__name__', hint)}, got {value!r}")
