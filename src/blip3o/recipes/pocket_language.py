"""Recipes of the pocket model's language side: to find what is named, then stage 1 of the paper.

The stages before `understanding` are drills: alone and in this order they are learned in minutes,
mixed with everything they are not (docs/training.md).
"""

import dataclasses
from pathlib import Path

from blip3o.data.mixture import DataConfig, MixtureEntry
from blip3o.objectives.next_token import NextTokenConfig
from blip3o.recipes.pocket_parts import FEATURES, RUNS, after, entry, model, training
from blip3o.train.config import RunConfig, TrainConfig

QUESTIONS = (
    "What is in the image?",
    "How many objects are there?",
    "Describe the image in detail.",
    "What is the background?",
) * 2

_LOOK_UPS = entry("scenes", "image_to_text", conversation="look_ups")
_BARE = entry("pairs", "plain_text", conversation="bare_look_ups")
_LISTS = entry("scenes", "text", conversation="text_look_ups")
_COUNTS = entry("scenes", "image_to_text", conversation="count_drills")
_NAMES = entry("scenes", "image_to_text", conversation="names", max_turns=3)
_NAMING = (
    entry("scenes", "image_to_text", conversation="drills", max_turns=3),
    entry("scenes", "text", conversation="text_drills", max_turns=3),
    *(dataclasses.replace(one, weight=0.5) for one in (_LISTS, _BARE, _LOOK_UPS)),
)


def look_ups(runs: Path = RUNS) -> RunConfig:
    """Before stage 1: to find a thing by its name in an image.

    blip3o train pocket.look_ups --out runs/pocket/look_ups

    One kind of question, alone, is looked up within 160 steps; a mixture of kinds is answered by
    what is left over, for good (docs/log.md, session 8).
    """
    train = _constant(steps=200, batch=32, lr=2e-3, micro_batch=16)
    return _drill(runs, "encoder", (_LOOK_UPS,), train)


def words(runs: Path = RUNS) -> RunConfig:
    """After look-ups: to find a word again, and to say the one before it.

    blip3o train pocket.words --out runs/pocket/words

    "red cat blue dog, dog" -> "blue". Nothing in a text is bound to its name before that is found
    out, and in longer texts it is not: attention is spread over too many tokens (docs/log.md,
    session 9). A few images go along, or they are forgotten.
    """
    mixture = (dataclasses.replace(_BARE, weight=12), _LOOK_UPS)
    train = _constant(steps=500, batch=208, lr=3e-3, micro_batch=96)
    return _drill(runs, "look_ups", mixture, train)


def lists(runs: Path = RUNS) -> RunConfig:
    """After words: the same in the chat format, with articles, commas and up to four things.

    blip3o train pocket.lists --out runs/pocket/lists
    """
    mixture = (dataclasses.replace(_LISTS, weight=2), _BARE, _LOOK_UPS)
    train = _constant(steps=300, batch=150, lr=2e-3, micro_batch=32)
    return _drill(runs, "words", mixture, train)


def naming(runs: Path = RUNS) -> RunConfig:
    """After lists: all facts of a thing by its name, in images and in words.

    blip3o train pocket.naming --out runs/pocket/naming

    Questions and edits that name a thing, and prompts of two things, build on it. What was drilled
    before goes along: the first steps, whose words are new, would wipe it out (docs/log.md).
    """
    train = training("backbone", steps=1000, batch=64, lr=1e-3, sample_every=0, micro_batch=12)
    return _drill(runs, "lists", _NAMING, train)


def counting(runs: Path = RUNS) -> RunConfig:
    """After naming: to tell one from none.

    blip3o train pocket.counting --out runs/pocket/counting

    "How many cats are there?" is answered by a guess until this look-up is practised alone; then it
    is learned within 150 steps (docs/log.md). Half of the rows keep what was drilled before.
    """
    mixture = (dataclasses.replace(_COUNTS, weight=3.5), *_NAMING)
    train = training("backbone", steps=300, batch=64, lr=1.2e-3, sample_every=0, micro_batch=12)
    return _drill(runs, "naming", mixture, train)


def names(runs: Path = RUNS) -> RunConfig:
    """After counting: what is there, which is the other way round: from a place to a name.

    blip3o train pocket.names --out runs/pocket/names

    Among all other questions half of the names were right after 2500 steps of stage 1; here they
    come within 700 (docs/log.md). Half of the rows keep what was drilled before.
    """
    told = entry("scenes", "text", conversation="text_names", max_turns=3)
    mixture = (dataclasses.replace(_NAMES, weight=3), told, _COUNTS, *_NAMING)
    train = training("backbone", steps=700, batch=64, lr=1.5e-3, sample_every=0, micro_batch=12)
    return _drill(runs, "counting", mixture, train)


def understanding(runs: Path = RUNS) -> RunConfig:
    """Stage 1: captions, questions and text; backbone and projector, encoder frozen.

    blip3o train pocket.understanding --out runs/pocket/understanding
    """
    return RunConfig(
        model=model(),
        init=(after(runs, "names"),),
        data=DataConfig(
            mixture=(
                entry("scenes", "image_to_text", weight=0.6, max_turns=4),
                entry("scenes", "text", weight=0.3, max_turns=4),
                dataclasses.replace(_NAMES, weight=0.1),
            ),
            feature_cache=FEATURES,
        ),
        objectives=(NextTokenConfig(length_power=0.8, hidden_share=0.2),),
        train=training("backbone", steps=6000, batch=32, lr=1.5e-3, micro_batch=8),
        sample_prompts=QUESTIONS,
    )


def _drill(
    runs: Path, before: str, mixture: tuple[MixtureEntry, ...], train: TrainConfig
) -> RunConfig:
    """Returns a stage in which only facts are learned, of one or a few kinds of rows."""
    return RunConfig(
        model=model(),
        init=(after(runs, before),),
        data=DataConfig(mixture=mixture, feature_cache=FEATURES),
        objectives=(NextTokenConfig(length_power=0.5),),
        train=train,
    )


def _constant(*, steps: int, batch: int, lr: float, micro_batch: int) -> TrainConfig:
    """Returns how a short drill is trained: at an almost constant rate.

    What is drilled is found out all at once, at a step that nobody can foresee: a rate that has
    decayed by then finds out nothing.
    """
    train = training("backbone", steps=steps, batch=batch, lr=lr, micro_batch=micro_batch)
    rates = dataclasses.replace(train.optimizer, min_lr=lr / 4, warmup_steps=30)
    return dataclasses.replace(train, optimizer=rates, sample_every=0)
