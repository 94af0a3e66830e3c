"""Recipes that train the pocket model's language: drills first, then stage 1 of the paper.

Each drill practises one kind of lookup. Alone and in this order, the drills are learned in minutes.
A full mixture does not teach them (docs/training.md).
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
    """First drill: trains the backbone to find an object in an image by its name.

    blip3o train pocket.look_ups --out runs/pocket/look_ups

    One kind of question alone is learned within 160 steps. With a mixture of kinds, the model
    guesses by elimination and never learns the lookup (docs/log.md, 2026-11-22, naming from
    scratch).
    """
    train = _constant(steps=200, batch=32, lr=2e-3, micro_batch=16)
    return _drill(runs, "encoder", (_LOOK_UPS,), train)


def words(runs: Path = RUNS) -> RunConfig:
    """Second drill: trains the backbone to find a word in a text and say the word before it.

    blip3o train pocket.words --out runs/pocket/words

    "red cat blue dog, dog" -> "blue". Only then does the model bind facts in a text to names.
    Longer texts do not teach it, because attention is spread over too many tokens (docs/log.md,
    2026-11-22, bare words). A few image lookups keep the first drill from being forgotten.
    """
    mixture = (dataclasses.replace(_BARE, weight=12), _LOOK_UPS)
    train = _constant(steps=500, batch=208, lr=3e-3, micro_batch=96)
    return _drill(runs, "look_ups", mixture, train)


def lists(runs: Path = RUNS) -> RunConfig:
    """Third drill: word lookups in the chat format, with articles, commas and up to four objects.

    blip3o train pocket.lists --out runs/pocket/lists
    """
    mixture = (dataclasses.replace(_LISTS, weight=2), _BARE, _LOOK_UPS)
    train = _constant(steps=300, batch=150, lr=2e-3, micro_batch=32)
    return _drill(runs, "words", mixture, train)


def naming(runs: Path = RUNS) -> RunConfig:
    """Fourth drill: trains all facts about a named object, in images and in texts.

    blip3o train pocket.naming --out runs/pocket/naming

    Questions and edits that name an object, and prompts of two objects, build on it. Earlier drills
    stay in the mixture, because the first steps with new words would erase them (docs/log.md).
    """
    train = training("backbone", steps=1000, batch=64, lr=1e-3, sample_every=0, micro_batch=12)
    return _drill(runs, "lists", _NAMING, train)


def counting(runs: Path = RUNS) -> RunConfig:
    """Fifth drill: trains the backbone to tell one object from none.

    blip3o train pocket.counting --out runs/pocket/counting

    The model guesses the answer to "How many cats are there?" until it practises this lookup alone,
    and then learns it within 150 steps (docs/log.md). Half of the rows repeat earlier drills.
    """
    mixture = (dataclasses.replace(_COUNTS, weight=3.5), *_NAMING)
    train = training("backbone", steps=300, batch=64, lr=1.2e-3, sample_every=0, micro_batch=12)
    return _drill(runs, "naming", mixture, train)


def names(runs: Path = RUNS) -> RunConfig:
    """Sixth drill, the reverse lookup: trains the backbone to name the object at a place.

    blip3o train pocket.names --out runs/pocket/names

    Mixed with all other questions, half of the names were right after 2500 steps of stage 1. This
    drill teaches them within 700 steps (docs/log.md). Half of the rows repeat earlier drills.
    """
    in_texts = entry("scenes", "text", conversation="text_names", max_turns=3)
    mixture = (dataclasses.replace(_NAMES, weight=3), in_texts, _COUNTS, *_NAMING)
    train = training("backbone", steps=700, batch=64, lr=1.5e-3, sample_every=0, micro_batch=12)
    return _drill(runs, "counting", mixture, train)


def understanding(runs: Path = RUNS) -> RunConfig:
    """Stage 1: trains backbone and projector on captions, questions and texts; encoder frozen.

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
    """Returns a stage that trains the backbone on one or a few kinds of lookup."""
    return RunConfig(
        model=model(),
        init=(after(runs, before),),
        data=DataConfig(mixture=mixture, feature_cache=FEATURES),
        objectives=(NextTokenConfig(length_power=0.5),),
        train=train,
    )


def _constant(*, steps: int, batch: int, lr: float, micro_batch: int) -> TrainConfig:
    """Returns the training settings of a short drill, with an almost constant learning rate.

    A lookup is learned suddenly, at a step that cannot be predicted, and a learning rate that has
    decayed by then is too low to learn it.
    """
    train = training("backbone", steps=steps, batch=batch, lr=lr, micro_batch=micro_batch)
    rates = dataclasses.replace(train.optimizer, min_lr=lr / 4, warmup_steps=30)
    return dataclasses.replace(train, optimizer=rates, sample_every=0)
