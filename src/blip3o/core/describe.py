"""Help texts of functions and settings, read from their source without importing it."""

import ast
import itertools
import re
import textwrap
from pathlib import Path
from typing import Any

from blip3o.core.registry import Registry
from blip3o.core.scalars import as_written

OVERRIDES = (
    "path=value changes one setting and may be repeated. A text is used literally, numbers are "
    "decimal, lists are written [a, b], mappings {a: 1}, and null means no value."
)
_WIDTH = 79
_MEANINGS_AT = 30
"""Column at which the meanings of settings begin."""
_ARGUMENT = re.compile(r"^    (\w+): (.*?)(?=^    \w+: |\Z)", re.M | re.S)


def summary_of(file: Path, function: str) -> str:
    """Returns the first line of the docstring of a function in a file, without its period."""
    return (ast.get_docstring(_definition(file, function)) or "").split("\n")[0].rstrip(".")


def describe_functions(table: Registry[Any], folder: Path) -> str:
    """Returns one line for each entry of a table: its name and the first line of its docstring.

    Args:
        table: names of functions or classes in modules of one package.
        folder: the folder of the package.
    """
    names = table.names()
    width = max(map(len, names))
    lines = []
    for name in names:
        module, function = table.place(name)
        summary = summary_of(_file_of(folder, module), function)
        lines.append(f"{name:{width}}  {summary}")
    return "\n".join(lines)


def describe_entry(table: Registry[Any], folder: Path, name: str, base: tuple[Path, str]) -> str:
    """Returns a line for each setting of a config in a table.

    Args:
        table: names of configs in modules of one package.
        folder: the folder of the package.
        name: name of the config in the table.
        base: file and name of the dataclass that all configs derive from; its fields come first,
            then those of other bases in the file of the config.

    Raises:
        UsageError: if the name is unknown.
    """
    module, config = table.place(name)
    file, settings = _file_of(folder, module), _settings_of(*base)
    for one in _line_of(file, config):
        settings |= _settings_of(file, one)
    return "\n".join(itertools.chain(*settings.values()))


def describe_settings(file: Path, config: str) -> str:
    """Returns a line for each setting of a config: its name, default and meaning.

    Args:
        file: the source file.
        config: the name of a dataclass in the file; its docstring describes the fields.
    """
    return "\n".join(itertools.chain(*_settings_of(file, config).values()))


def _settings_of(file: Path, config: str) -> dict[str, list[str]]:
    """Returns the lines of each setting of a config by its name."""
    node = _definition(file, config)
    arguments = (ast.get_docstring(node) or "").partition("Args:\n")[2].partition("\n\n")[0]
    meanings = {name: " ".join(text.split()) for name, text in _ARGUMENT.findall(arguments)}
    return {
        field.target.id: _wrapped(
            f"  {_assignment(field.target.id, field.value)}", meanings.get(field.target.id, "")
        )
        for field in node.body
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and not ast.unparse(field.annotation).startswith("ClassVar")
    }


def _line_of(file: Path, config: str) -> list[str]:
    """Returns the bases of a class that its file defines, the first one first, and the class."""
    node = _definition(file, config)
    inside = {
        one.name
        for one in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(one, ast.ClassDef)
    }
    bases = [one.id for one in getattr(node, "bases", ()) if isinstance(one, ast.Name)]
    return [name for base in bases if base in inside for name in _line_of(file, base)] + [config]


def _file_of(folder: Path, module: str) -> Path:
    """Returns the file of a module that is named relative to its package, ".geneval.benchmark"."""
    return folder / f"{module.removeprefix('.').replace('.', '/')}.py"


def _assignment(name: str, default: ast.expr | None) -> str:
    """Returns "name=default"; "name.*=" for settings of a nested config."""
    if isinstance(default, ast.Name | ast.Call):
        return f"{name}.*="
    return f"{name}={'' if default is None else as_written(ast.literal_eval(default))}"


def _definition(file: Path, name: str) -> ast.FunctionDef | ast.ClassDef:
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return node
    raise LookupError(f"{file} defines no {name}")


def _wrapped(name: str, meaning: str) -> list[str]:
    indent = " " * _MEANINGS_AT
    lines = textwrap.wrap(
        meaning, _WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )
    if not lines or len(name) >= _MEANINGS_AT:
        return [name, *lines]
    return [name + lines[0][len(name) :], *lines[1:]]
