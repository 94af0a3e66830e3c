"""Dataclasses of settings whose fields are options of a command."""

import argparse
import dataclasses
from typing import Any, ClassVar, Protocol, TypeVar


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]


T = TypeVar("T")
ConfigT = TypeVar("ConfigT", bound=_Dataclass)


def option(default: T, text: str) -> T:
    """Returns a dataclass field with its default and its help text."""
    return dataclasses.field(default=default, metadata={"help": text})


def flag(name: str) -> str:
    """Returns the command-line option of a field."""
    return "--" + name.replace("_", "-")


def add_options(command: argparse.ArgumentParser, config: type[ConfigT]) -> None:
    """Adds an option for every field of a config, all made by `option`."""
    for field in dataclasses.fields(config):
        text = field.metadata["help"]
        if isinstance(field.default, bool):
            command.add_argument(flag(field.name), action="store_true", help=text)
        elif isinstance(field.default, tuple):
            command.add_argument(flag(field.name), action="append", default=[], help=text)
        else:
            shown = f"{text} ({field.default})"
            kind = type(field.default)
            command.add_argument(flag(field.name), type=kind, default=field.default, help=shown)


def from_options(config: type[ConfigT], options: argparse.Namespace) -> ConfigT:
    """Returns the config for parsed command-line options; raises the errors of the config."""
    settings: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(options, field.name)
        settings[field.name] = tuple(value) if isinstance(value, list) else value
    return config(**settings)
