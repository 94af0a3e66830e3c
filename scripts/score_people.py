"""Scores a model on prompts, questions and edits in people's own words.

    python scripts/score_people.py pocket

Prints the share of right samples of each kind. The sentences are in tests/data/people, whose
README says how each is judged. Prompts and edits get one image each, and the noise of item k has
seed 1000 k. Answers are greedy. Small talk has no right answer and is left out.
"""

import argparse
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from blip3o import Blip3oPipeline
from blip3o.core.rng import generator
from blip3o.data.scenes.render import render
from blip3o.data.scenes.types import Placed, Scene, place
from blip3o.eval.scene_detector import detect
from blip3o.eval.scene_rules import (
    SceneDetection,
    WantedThing,
    judge_scene,
    matches,
    relation_holds,
)

DATA = Path(__file__).parents[1] / "tests" / "data" / "people"
BATCH = 16
Row = dict[str, Any]


def rows_of(part: str) -> list[Row]:
    """Returns the lines of a part: "prompts", "questions" or "edits"."""
    return [json.loads(line) for line in (DATA / f"{part}.jsonl").read_text("utf-8").splitlines()]


def image_of(row: Row) -> Image.Image:
    """Returns the image that a question or an edit is about."""
    objects = tuple(Placed(**one) for one in row["scene"]["objects"])
    return render(Scene(background=row["scene"]["background"], objects=objects), 96)


def is_right_image(row: Row, image: Image.Image) -> bool:
    """Returns whether an image shows the things that a prompt asks for."""
    wanted = [WantedThing(**one) for one in row["include"]]
    return judge_scene(detect(image), wanted, row["relation"], exact_count=row["exact"])


def is_right_answer(row: Row, answer: str) -> bool:
    """Returns whether an answer holds an accepted phrase, or every phrase that it must hold."""
    words = f" {re.sub(r'[^a-z0-9 ]', '', answer.lower())} "
    phrases = row.get("accept") or row["must_contain"]
    held = [f" {phrase} " in words for phrase in phrases]
    return any(held) if "accept" in row else all(held)


def is_right_edit(row: Row, image: Image.Image) -> bool:
    """Returns whether an edited image shows exactly the expected objects, at the named place."""
    found = detect(image)
    wanted = [WantedThing(**one) for one in row["expect"]["objects"]]
    shown = judge_scene(found, wanted, exact_count=True) and len(found) == len(wanted)
    return shown and _is_at_place(row["expect"].get("at"), found, wanted)


def _is_at_place(
    at: Mapping[str, Any] | None, found: Sequence[SceneDetection], wanted: list[WantedThing]
) -> bool:
    if at is None:
        return True
    one = _found(found, wanted[at["index"]])
    if "relation" in at:
        return relation_holds(at["relation"], one, _found(found, wanted[at["to"]]))
    where = place(Placed(thing=one.thing, color=one.color, x=one.x, y=one.y, size=one.size))
    return where == at["place"] if "place" in at else at["side"] in where.split()


def _found(found: Sequence[SceneDetection], wanted: WantedThing) -> SceneDetection:
    return next(one for one in found if matches(one, wanted))


def images(pipe: Blip3oPipeline, part: str, rows: list[Row]) -> Iterator[Image.Image]:
    """Yields an image for each prompt or edit."""
    for start in range(0, len(rows), BATCH):
        some = rows[start : start + BATCH]
        seeds = [generator(1000 * (start + k)) for k in range(len(some))]
        if part == "prompts":
            yield from pipe([row["prompt"] for row in some], generator=seeds).images
        else:
            texts = [row["instruction"] for row in some]
            yield from pipe.edit([image_of(row) for row in some], texts, generator=seeds).images


def verdicts(pipe: Blip3oPipeline, part: str) -> Iterator[tuple[str, bool]]:
    """Yields the kind of each sample of a part, and whether it is right."""
    rows = rows_of(part)
    if part == "questions":
        for row in (row for row in rows if row["kind"] != "smalltalk"):
            yield row["kind"], is_right_answer(row, pipe.ask(image_of(row), row["question"]))
        return
    judge, key = (is_right_image, "category") if part == "prompts" else (is_right_edit, "kind")
    for row, image in zip(rows, images(pipe, part, rows), strict=True):
        yield row[key], judge(row, image)


def main() -> None:
    """Prints the scores of a model."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="pocket, a model folder or a run folder")
    pipe = Blip3oPipeline.from_pretrained(parser.parse_args().model)
    for part in ("prompts", "questions", "edits"):
        by_kind: dict[str, list[bool]] = defaultdict(list)
        for kind, is_right in verdicts(pipe, part):
            by_kind[kind].append(is_right)
        every = [one for some in by_kind.values() for one in some]
        kinds = ", ".join(f"{kind} {sum(some) / len(some):.2f}" for kind, some in by_kind.items())
        print(f"{part} {sum(every) / len(every):.3f} of {len(every)}: {kinds}", flush=True)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
