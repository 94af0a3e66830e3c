"""Grammars: filling, forms, differences, sizes, and the faults of files."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest

from blip3o.core.errors import UsageError
from blip3o.core.plain import parse_yaml
from blip3o.curate.contamination import PromptIndex
from blip3o.curate.decontaminate import BUNDLED, benchmark_prompts
from blip3o.curate.grammar import Grammar, Sentence, grammar_file, read_grammar
from blip3o.eval.geneval.prompts import checked_metadata

BUNDLED_GRAMMARS = ("blip3o_60k", "edits")


def grammar(text: str) -> Grammar:
    return Grammar(parse_yaml(text), "mine.yaml")


def texts(words: str, template: str, num: int = 60) -> set[str]:
    made = grammar(f"words:\n{words}\ncategories:\n  x:\n    - {template}")
    return {made.sentence("x", np.random.default_rng(k)).text for k in range(num)}


def test_articles_and_plurals() -> None:
    words = """
  it: [apple, unicorn, hour, Umbrella, European stork, one-way sign, uncle, university, cup of tea,
    {word: ox, many: oxen}, box, {word: scissors, a: a pair of scissors}]
"""
    found = texts(words, '"{a it} | {it.many}"', 300)
    assert found == {
        "an apple | apples",
        "a unicorn | unicorns",
        "an hour | hours",
        "an Umbrella | Umbrellas",
        "a European stork | European storks",
        "a one-way sign | one-way signs",
        "an uncle | uncles",
        "a university | universities",
        "a cup of tea | cups of tea",
        "an ox | oxen",
        "a box | boxes",
        "a pair of scissors | scissorses",
    }


def test_equal_gaps_are_equal_and_labels_differ() -> None:
    found = texts("  it: [a, b, c]", '"{it} {it} {it:1} {it:2}"')
    for text in found:
        same, again, one, two = text.split()
        assert same == again
        assert len({same, one, two}) == 3
    assert len(found) == 6


def test_nested_entries_draw_anew_and_keep_their_forms_together() -> None:
    words = '  color: [red, blue]\n  it: ["{color} cat", {word: "{color} dog", who: "{color} one"}]'
    found = texts(words, '"{it.who}, {a it}; {color}"')
    assert {"red one, a red dog; blue", "blue cat, a blue cat; red"} <= found
    assert not any(text.startswith("red one, a blue") for text in found)


def test_lists_include_others() -> None:
    found = texts("  a: [x, y]\n  b: [{words_of: a}, z]", '"{b}"')
    assert found == {"x", "y", "z"}


def test_sentences_begin_with_capitals() -> None:
    assert texts("  it: [owl]", '"{a it} sits. {a it} flies."') == {"An owl sits. An owl flies."}
    assert texts("  it: [owl]", '"{a it} in St. ives"') == {"an owl in St. ives"}


def test_weights() -> None:
    made = grammar(
        "words: {it: [{word: often, weight: 9}, seldom]}\n"
        "categories: {x: [{text: '{it}', weight: 3}, other]}"
    )
    found = [made.sentence("x", np.random.default_rng(k)).text for k in range(2000)]
    assert 0.70 < 1 - found.count("other") / 2000 < 0.80
    assert 0.87 < found.count("often") / (2000 - found.count("other")) < 0.93


def test_facts_and_sources() -> None:
    made = grammar(
        """
words: {n: [{word: two, number: 2, code: "7"}], it: [{word: TV, class: tv}]}
categories:
  x:
    - source: "{a it}"
      text: "{n} {it.many}"
      facts:
        include: [{class: "{it.class}", count: "{n.number}"}]
        where: [left of, 0, "{n.code}"]
"""
    )
    assert made.sentence("x", np.random.default_rng(0)) == Sentence(
        text="two TVs",
        source="a TV",
        facts={"include": [{"class": "tv", "count": 2}], "where": ["left of", 0, "7"]},
        template="{n} {it.many}",
    )


def test_expected_number_of_sentences() -> None:
    made = grammar(
        """
words: {color: [red, blue, green], it: [cat, "{color} dog"], n: [one, two]}
categories: {x: ["{it:1} {it:2}", {text: "{n}", source: "{color}"}], y: ["{color} {color}"]}
"""
    )
    # Two of {cat, dog in 3 colors} in both orders, and 3 x 2 pairs of source and text.
    assert made.num_expected("x", 10**6) == pytest.approx(2 * 1 * 3 + 6)
    assert made.num_expected("y", 1) == pytest.approx(1)
    assert made.num_expected("y", 2) == pytest.approx(3 * (1 - (2 / 3) ** 2))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("categories: {x: ['a {colour}']}\nwords: {color: [red]}", "x, template 1: unknown gap"),
        ("words: {a: []}\ncategories: {x: [t]}", "words.a: the list is empty"),
        ("categories: {x: []}", "categories.x: the list is empty"),
        ("words: {}", "categories: there is none"),
        ("categories: {x: ['{ a}']}", "not a gap like"),
        ("categories: {x: ['{a']}", "a brace has no partner"),
        ("words: {a: [b]}\ncategories: {x: ['{a.big}']}", "unknown form of a 'big'"),
        ("words: {a: [b]}\ncategories: {x: ['{a:1} {a:2}']}", "2 different a are needed"),
        ("words: {a: ['{b}'], b: ['{a}']}\ncategories: {x: [t]}", "lead back to itself"),
        ("words: {a: [{words_of: a}]}\ncategories: {x: [t]}", "includes itself"),
        ("words: {a: [{words_of: c}]}\ncategories: {x: [t]}", "unknown list of words 'c'"),
        ("words: {a: ['{c}']}\ncategories: {x: [t]}", "words.a: unknown gap 'c'"),
        ("words: {a: [{many: b}]}\ncategories: {x: [t]}", "words.a, entry 1: an entry has no"),
        ("words: {a: [{b: }]}\ncategories: {x: [t]}", "an entry has no 'word'"),
        ("categories: {x: [{text: t, wieght: 2}]}", "unknown key 'wieght'"),
        ("categories: {x: [{text: t, weight: 0}]}", "weight must be a number above 0"),
        ("categories: {x: [{source: t}]}", "template 1: it must be a text, got None"),
        ("words: {a: [b]}\ncategories: {x: [{text: t, facts: {c: '{a}'}}]}", "no text does"),
        ("kategories: {}", "unknown key 'kategories'"),
    ],
)
def test_faults_name_their_place(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        grammar(text)
    assert message in str(caught.value)
    assert "mine.yaml" in str(caught.value)


def test_unknown_categories_and_files(tmp_path: Path) -> None:
    made = grammar("categories: {animals: [t]}")
    with pytest.raises(UsageError, match=r"unknown category of the grammar mine\.yaml 'animal'"):
        made.sentence("animal", np.random.default_rng(0))
    with pytest.raises(UsageError, match="unknown grammar 'edit'; did you mean edits"):
        grammar_file("edit")
    with pytest.raises(UsageError, match="no such file"):
        read_grammar(str(tmp_path / "none.yaml"))
    file = tmp_path / "bad.yaml"
    file.write_text("words:\n  a: [b\n", encoding="utf-8")
    with pytest.raises(UsageError, match="line"):
        read_grammar(str(file))


def samples(name: str, num: int) -> list[tuple[str, Sentence]]:
    made = read_grammar(name)
    return [
        (category, made.sentence(category, np.random.default_rng(k)))
        for category, k in itertools.product(made.categories, range(num))
    ]


@pytest.mark.parametrize("name", BUNDLED_GRAMMARS)
def test_bundled_grammars_have_very_many_sentences(name: str) -> None:
    made = read_grammar(name)
    for category in made.categories:
        assert made.num_expected(category, 10**9) > 100_000
        # Even a plan of 4,000 drafts of one category repeats few of them.
        assert made.num_expected(category, 4000) > 3700


@pytest.mark.parametrize("name", BUNDLED_GRAMMARS)
def test_bundled_sentences_are_clean(name: str) -> None:
    for category, sentence in samples(name, 200):
        for text in filter(None, (sentence.source, sentence.text)):
            assert not set("{}") & set(text), text
            assert text == " ".join(text.split()), text
            assert " ," not in text, text
            assert not re.search(r"\ba an?\b|\ban an?\b", text), text
            assert "picture" not in text, text
            assert not re.search(r"\b(?:childs|\w*leafs|knifes|\w+tos|(?:wo)?mans)\b", text), text
        assert bool(sentence.source) == (name == "edits"), category
        if sentence.source:
            assert sentence.text[0].isupper()
            assert sentence.text.endswith((".", '".'))


def test_facts_of_the_60k_grammar_suit_the_rules_of_geneval() -> None:
    tags = set()
    for category, sentence in samples("blip3o_60k", 100):
        if category == "simple_text":
            assert f'"{sentence.facts["text"]}"' in sentence.text
        elif sentence.facts:
            tags.add(sentence.facts["tag"])
            checked_metadata({**sentence.facts, "prompt": sentence.text}, sentence.text)
    assert len(tags) == 6


def test_bundled_sentences_seldom_repeat_benchmarks() -> None:
    index = PromptIndex(benchmark_prompts(BUNDLED))
    some = samples("blip3o_60k", 60)
    found = [one.text for _, one in some if index.match(one.text)]
    assert len(found) <= 0.01 * len(some)
