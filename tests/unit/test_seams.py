"""Only `models` and `weights` know the inside of a plan."""

import io
import tokenize
from pathlib import Path

import blip3o

SRC = Path(blip3o.__file__).parent
INSIDE = {"dit", "query_tokens", "condition"}


def names_in(file: Path) -> list[str]:
    """Returns the names in a file's code, and the words of its texts that are no prose."""
    words = []
    for token in tokenize.generate_tokens(io.StringIO(file.read_text(encoding="utf-8")).readline):
        if token.type == tokenize.NAME:
            words.append(token.string)
        elif token.type == tokenize.STRING and " " not in token.string:
            words += token.string.strip("\"'").split(".")
    return words


def test_only_models_and_weights_know_queries_and_the_dit() -> None:
    found = {
        str(file.relative_to(SRC)): sorted(INSIDE & set(names_in(file)))
        for file in sorted(SRC.rglob("*.py"))
        if file.relative_to(SRC).parts[0] not in ("models", "weights")
    }
    assert {file: names for file, names in found.items() if names} == {}
