"""Reads YAML into plain data: repeated keys are refused, and a scalar keeps its source text.

YAML guesses from the form of a word whether it is a number, a date or null (`010`, `1:30`, `~`).
Here the type of the field decides: a scalar is read as `Text`, and `blip3o.core.config` converts it
once it knows the field.
"""

from collections.abc import Hashable

import yaml

from blip3o.core.errors import UsageError
from blip3o.core.scalars import Text

_YAML = "tag:yaml.org,2002:"
_PLAIN_TAGS = tuple(_YAML + name for name in ("null", "bool", "int", "float", "timestamp", "value"))

# YAML 1.1 also treats these characters as line ends and folds them into spaces; YAML 1.2 does not.
# They are replaced by private-use characters while YAML reads a text.
_HIDDEN = {0x85: 0x10FF85, 0x2028: 0x10FF28, 0x2029: 0x10FF29}
_SHOWN = {hidden: letter for letter, hidden in _HIDDEN.items()}


def _refusal(problem: str, node: yaml.Node) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


class _Loader(yaml.SafeLoader):
    """Reads scalars as `Text` and refuses a key that appears twice in one mapping."""

    def construct_mapping(
        self, node: yaml.MappingNode, deep: bool = False
    ) -> dict[Hashable, object]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _refusal("a key must be one word or text", key)
            if key.value in seen:
                raise _refusal(f"the key {key.value!r} appears twice", key)
            seen.add(key.value)
        self.flatten_mapping(node)
        return {
            key.value.translate(_SHOWN): self.construct_object(value, deep=True)
            for key, value in node.value
        }

    def _mapping(self, node: yaml.Node) -> dict[Hashable, object]:
        if not isinstance(node, yaml.MappingNode):
            raise _refusal("this is not a mapping", node)
        return self.construct_mapping(node, deep=True)

    def _sequence(self, node: yaml.Node) -> list[object]:
        if not isinstance(node, yaml.SequenceNode):
            raise _refusal("this is not a list", node)
        return [self.construct_object(item, deep=True) for item in node.value]

    def _text(self, node: yaml.Node) -> Text:
        if not isinstance(node, yaml.ScalarNode):
            raise _refusal("this is not a text", node)
        text = str(self.construct_scalar(node))
        # `!!str 5` is a text although it has no quotes. A tag that YAML only guessed has no effect.
        implicit = self.resolve(yaml.ScalarNode, text, (True, False))
        is_forced = node.tag == _YAML + "str" and implicit != node.tag
        return Text(text.translate(_SHOWN), is_plain=node.style is None and not is_forced)


_Loader.add_constructor(_YAML + "map", _Loader._mapping)
_Loader.add_constructor(_YAML + "seq", _Loader._sequence)
for _tag in (*_PLAIN_TAGS, _YAML + "str"):
    _Loader.add_constructor(_tag, _Loader._text)
for _tag in ("binary", "omap", "pairs", "set"):
    _Loader.add_constructor(_YAML + _tag, yaml.SafeLoader.construct_undefined)


class _Dumper(yaml.SafeDumper):
    """Quotes every text that a field could read as something else."""

    def _string(self, text: str) -> yaml.ScalarNode:
        read = Text(text)
        is_other = read.is_null or read.boolean() is not None or read.real() is not None
        return self.represent_scalar(_YAML + "str", text, style="'" if is_other else None)


_Dumper.add_representer(str, _Dumper._string)
_NEVER_FOLDED = 2**31
"""Line width that keeps every text on one line."""


def format_yaml(data: object) -> str:
    """Returns dicts, in their order, lists and scalars as YAML that `parse_yaml` reads back."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, width=_NEVER_FOLDED)


def parse_yaml(text: str) -> object:
    """Returns the data of one YAML document: dicts, lists and `Text`s.

    Raises:
        UsageError: if it is not YAML or a key appears twice in one mapping; names the line.
    """
    try:
        return yaml.load(text.translate(_HIDDEN), _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = "" if mark is None else f"line {mark.line + 1}: "
        parts = [error.problem] if _is_whole(error.problem) else [error.context, error.problem]
        raise UsageError(line + " ".join(" ".join(filter(None, parts)).split())) from error
    except (yaml.YAMLError, ValueError) as error:
        raise UsageError(" ".join(str(error).split())) from error
    except RecursionError as error:
        raise UsageError("it is nested too deeply") from error


def _is_whole(problem: str | None) -> bool:
    """Returns whether YAML's message about a problem is complete without its context."""
    return bool(problem) and not str(problem).startswith("but ")


def parse_value(text: str) -> object:
    """Returns the list or mapping that the value of `path=value` holds as YAML.

    Comments, anchors and tags are refused, because YAML would drop or interpret them.

    Raises:
        UsageError: if it is not YAML, or holds a comment, an anchor or a tag.
    """
    try:
        tokens = list(yaml.scan(text.translate(_HIDDEN), yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise UsageError("the value is not YAML") from error
    if any(isinstance(one, yaml.AnchorToken | yaml.AliasToken | yaml.TagToken) for one in tokens):
        raise UsageError("the value holds a word that begins with &, * or !: put it in quotes")
    ends = [one.end_mark.index for one in tokens if one.end_mark.index > one.start_mark.index]
    if text[max(ends, default=0) :].strip():
        raise UsageError("the value holds a #, which begins a comment: put the text in quotes")
    try:
        return parse_yaml(text)
    except UsageError as error:
        raise UsageError(f"the value is not YAML: {error}") from error


def unquoted(text: str) -> str | None:
    """Returns the text between the quotes of a value that YAML quotes as a whole, else None."""
    inner = text.strip()
    if len(inner) < 2 or inner[0] not in "'\"" or inner[-1] != inner[0]:
        return None
    try:
        data = parse_yaml(inner)
    except UsageError:
        return None
    return data.text if isinstance(data, Text) and not data.is_plain else None
