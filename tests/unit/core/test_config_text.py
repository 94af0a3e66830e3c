"""Values written as text are read by the type of their field, on the command line and in files."""

import dataclasses
import itertools
import random
from pathlib import Path
from typing import Any, Literal

import pytest

from blip3o.core.config import LocalPath, from_dict, override, read_yaml, save_yaml, to_dict
from blip3o.core.errors import UsageError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    width: int = 4
    note: str = ""
    texts: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    text: str = "x"
    maybe: str | None = None
    texts: tuple[str, ...] = ("a", "b")
    words: dict[str, str] = dataclasses.field(default_factory=dict)
    mode: Literal["fast", "slow"] = "fast"
    either: int | str = 1
    count: int = 1
    limit: int | None = None
    rate: float = 1.0
    is_on: bool = False
    folder: LocalPath = "here"
    cache: LocalPath | None = None
    free: dict[str, Any] = dataclasses.field(default_factory=dict)
    left: Part = Part()
    right: Part = Part()
    extra: Part | None = None

    def __post_init__(self) -> None:
        if self.left.width != self.right.width:
            raise ValueError("left and right must have one width")


TEXTS = [
    *("my dog #1", "&x", "*x", "~", "010", "1:30", "[V] dog", "dog: Rex", "2024", "yes", "null"),
    *("none", "None", "NULL", "true", "off", "1e-4", "0x10", "1_000", "2024-05-01", ".inf", "-"),
    *(
        "- a",
        "? b",
        "!tag",
        "!!str 5",
        "%x",
        "@x",
        "`x`",
        "{caption}",
        "{a: 1}",
        "[a, b]",
        "[",
        "{",
    ),
    *("a = b", "=", "a=b=c", " two  spaces ", "\ttab", "it's", '6" tall', "'tis", '"', "'", "a\\b"),
    *(
        "\u00e9t\u00e9",
        "\u72ac",
        "\U0001f436",
        "a\u2028b",
        "a\x85b",
        "a\xa0b",
        "line\nline",
        "# all",
    ),
    *(
        "a:",
        ":b",
        "a #",
        "<<",
        "...",
        "---",
        "|",
        ">",
        "a, b",
        "x" * 300 + " " + "y" * 300,
        "\ufeffa",
    ),
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_used_literally(text: str) -> None:
    assert override(Config(), [f"text={text}"]).text == text
    assert override(Config(), [f"texts.1={text}"]).texts == ("a", text)
    assert override(Config(words={"k": "v"}), [f"words.k={text}"]).words == {"k": text}
    assert override(Config(), [f"left.note={text}"]).left.note == text
    assert override(Config(), [f"maybe={text}"]).maybe == (None if text == "null" else text)


@pytest.mark.parametrize("text", [*TEXTS, ""])
def test_a_text_survives_the_file_of_a_run(tmp_path: Path, text: str) -> None:
    for config in (
        Config(text=text, maybe=text, texts=(text, text), words={text: text}),
        Config(free={"a": text, "b": [text, 1, 1e-5, None, True]}, left=Part(note=text)),
        Config(either=text),
    ):
        save_yaml(config, tmp_path / "config.yaml")
        assert from_dict(Config, read_yaml(tmp_path / "config.yaml")) == config
        assert from_dict(Config, to_dict(config)) == config


def test_random_texts_survive_the_command_line_and_files(tmp_path: Path) -> None:
    letters, rng = "ab01 :#-&*!?|>%@`'\"[]{},=~.\\\t\u00e9\u2028\x85\u72ac_<", random.Random(0)
    for _ in range(400):
        text = "".join(rng.choices(letters, k=rng.randrange(1, 12)))
        config = Config(text=text, texts=(text,), words={text: text}, free={text: [text]})
        save_yaml(config, tmp_path / "config.yaml")
        assert from_dict(Config, read_yaml(tmp_path / "config.yaml")) == config
        inner = text.strip()
        if not (len(inner) > 1 and inner[0] == inner[-1] and inner[0] in "'\""):
            assert override(Config(), [f"text={text}"]).text == text


@pytest.mark.parametrize(
    ("text", "value"),
    [("'5'", "5"), ('"null"', "null"), ('" a "', " a "), ("'it''s'", "it's"), ('"a\\nb"', "a\nb")],
)
def test_quotes_around_a_whole_text_are_those_of_yaml(text: str, value: str) -> None:
    changed = override(Config(), [f"text={text}", f"maybe={text}", f"texts.0={text}"])
    assert (changed.text, changed.maybe, changed.texts[0]) == (value, value, value)
    for kept in ("'a' and 'b'", '"a" b', "'", "\"a'"):
        assert override(Config(), [f"text={kept}"]).text == kept


@pytest.mark.parametrize("text", ["2024", "010", "yes", "1:30", "null", "~", "1e-4", "0x10", "off"])
def test_a_file_keeps_every_character_of_a_text(tmp_path: Path, text: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"text: {text}\ntexts: [{text}, b]\nwords: {{k: {text}}}\neither: a {text}\n")
    config = from_dict(Config, read_yaml(file))
    assert (config.text, config.texts, config.words) == (text, (text, "b"), {"k": text})


def test_a_file_spells_none_as_yaml_does(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    for nothing in ("null", "~", ""):
        file.write_text(f"maybe: {nothing}\nlimit: {nothing}\n")
        assert from_dict(Config, read_yaml(file)) == Config()
    file.write_text("maybe: 'null'\n")
    assert from_dict(Config, read_yaml(file)).maybe == "null"
    file.write_text("text:\n")
    with pytest.raises(UsageError, match="text must be str, got None"):
        from_dict(Config, read_yaml(file))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("10", 10), ("010", 10), ("-7", -7), ("+7", 7), (" 8 ", 8), ("1_000", 1000)),
        *(("1e3", 1000), ("2.0", 2), ("123456789012345678901", 123456789012345678901)),
    ],
)
def test_whole_numbers_are_decimal(tmp_path: Path, text: str, value: int) -> None:
    assert override(Config(), [f"count={text}"]).count == value
    assert override(Config(), [f"limit={text}"]).limit == value
    (tmp_path / "run.yaml").write_text(f"count: {text}\n")
    assert from_dict(Config, read_yaml(tmp_path / "run.yaml")).count == value


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "0.0001", ".0001", "+1.0e-4", "00.0001"])
def test_other_numbers_are_decimal(tmp_path: Path, text: str) -> None:
    assert override(Config(), [f"rate={text}"]).rate == 1e-4
    (tmp_path / "run.yaml").write_text(f"rate: {text}\n")
    assert from_dict(Config, read_yaml(tmp_path / "run.yaml")).rate == 1e-4


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("count", text) for text in ("0x10", "1:30", "0o10", "0b1", "1.5", "ten", "", "\u0663")),
        *(("count", text) for text in ("true", "'5'", "1e400", "9007199254740993.0", "[1]", "1 2")),
        *(("rate", text) for text in ("0x10", "1:30", "1,5", "", "true", "\u0663")),
        *(("is_on", text) for text in ("1", "0", "tRue", "", "'true'", "on#")),
        *(("mode", text) for text in ("", "Fast", "medium", "null")),
        *(("limit", text) for text in ("none", "0x1", "'null'")),
        *(("texts", text) for text in ("a", "5", "{a: b}", "[a, &x b]", "[*x]", "[a, b] # c")),
        *(("texts", text) for text in ("[a: b]", "[!x a]", "[a", "[a]]", "[a] b", "'[a]'")),
        *(("left", text) for text in ("4", "null", "{width: x}", "{width: 1, width: 1}")),
    ],
)
def test_a_value_of_another_type_is_refused_in_one_line(name: str, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        override(Config(), [f"{name}={text}"])
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("word", ["true", "True", "TRUE", "yes", "on"])
def test_truth_values_are_spelled_as_in_yaml(word: str) -> None:
    assert override(Config(), [f"is_on={word}"]).is_on
    opposite = {"yes": "no", "on": "off"}.get(word, "false")
    assert not override(Config(is_on=True), [f"is_on={opposite}"]).is_on


def test_lists_and_mappings_are_yaml() -> None:
    changed = override(Config(), ["texts=[a dog, 2024, yes, '#1', ~]", "words={a: 010, b: 1:30}"])
    assert changed.texts == ("a dog", "2024", "yes", "#1", "~")
    assert changed.words == {"a": "010", "b": "1:30"}
    changed = override(Config(), ["free={a: 010, b: 1e-4, c: [true, null, 'null', yes, 1:30]}"])
    assert changed.free == {"a": 10, "b": 1e-4, "c": [True, None, "null", "yes", "1:30"]}


def test_settings_that_must_change_together_may_come_in_any_order() -> None:
    for order in itertools.permutations(["left.width=8", "right.width=8"]):
        assert override(Config(), order).right.width == 8
    with pytest.raises(UsageError, match="must have one width"):
        override(Config(), ["left.width=8"])


def test_an_assignment_may_extend_the_value_of_an_earlier_one() -> None:
    changed = override(Config(), ["extra={width: 2}", "extra.note=a #1", "extra.texts=[x, y]"])
    assert changed.extra == Part(width=2, note="a #1", texts=("x", "y"))
    assert override(Config(), ["texts=[a, b]", "texts.1=&c"]).texts == ("a", "&c")
    # Also while the whole is not valid yet.
    words = ["left={width: 2}", "left.note=n", "right.width=2"]
    assert override(Config(), words).left == Part(width=2, note="n")
    with pytest.raises(UsageError, match=r"left\.nte"):
        override(Config(), ["left={width: 2}", "left.nte=n", "right.width=2"])
    with pytest.raises(UsageError, match=r"extra\.note does not exist: its parent is the value"):
        override(Config(), ["extra=5", "extra.note=n"])


def test_a_path_may_begin_with_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    (tmp_path / "run.yaml").write_text("folder: ~/a\ncache: ~\ntext: ~/x\n")
    config = from_dict(Config, read_yaml(tmp_path / "run.yaml"))
    assert (config.folder, config.cache, config.text) == ("/home/me/a", None, "~/x")
    changed = override(config, ["folder=~/a #1", "cache=~/b"])
    assert (changed.folder, changed.cache) == ("/home/me/a #1", "/home/me/b")
    assert override(config, ["folder=s3://a/~b"]).folder == "s3://a/~b"


@pytest.mark.parametrize(
    ("content", "line", "key"),
    [
        ("text: a\ncount: 1\ntext: b\n", 3, "text"),
        ("left:\n  width: 1\n  note: a\n  width: 2\n", 4, "width"),
        ("texts: [a]\n'texts': [b]\n", 2, "texts"),
        ("words: {a: b, c: d, a: b}\n", 1, "a"),
        ("free:\n- {a: 1,\n   a: 1}\n", 3, "a"),
    ],
)
def test_a_repeated_key_is_refused_with_its_line(
    tmp_path: Path, content: str, line: int, key: str
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(content)
    with pytest.raises(UsageError, match=f"line {line}: the key '{key}' appears twice"):
        from_dict(Config, read_yaml(file))


def test_anchors_and_merged_mappings_work_in_files(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("left: &p {width: 2, note: 010}\nright: {<<: *p, note: b}\nextra: *p\n")
    config = from_dict(Config, read_yaml(file))
    assert config.right == Part(width=2, note="b")
    assert config.extra == config.left == Part(width=2, note="010")


@pytest.mark.parametrize(
    "content",
    ["a: &x [*x]", "? [a]\n: b", "a: !!binary aGk=", "!!set {a}", "a: 1\n---\nb: 2", "[" * 5000],
)
def test_yaml_other_than_a_config_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.yaml").write_text(content)
    with pytest.raises(UsageError) as caught:
        from_dict(Config, read_yaml(tmp_path / "run.yaml"))
    assert "\n" not in str(caught.value)
