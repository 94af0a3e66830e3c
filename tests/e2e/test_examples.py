"""The results of every prompt, question and instruction in documents, demo and page are right.

The scene detector judges images; answers must match exactly. Every run has the documented seed 0.
"""

import ast
import dataclasses
import json
import re
import runpy
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from blip3o import Blip3oPipeline
from blip3o.cli import build_parser, main
from blip3o.core.rng import image_generator
from blip3o.data.scenes.captions import detailed_caption
from blip3o.data.scenes.question_forms import description
from blip3o.data.scenes.render import render
from blip3o.data.scenes.things import COLORS, NUMBER_WORDS, THINGS, plural
from blip3o.data.scenes.types import Placed, Scene
from blip3o.data.scenes.words import Group, join, phrase
from blip3o.eval.scene_detector import detect
from blip3o.eval.scene_rules import SceneDetection, WantedThing, judge_scene, same_objects

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [page for page in PAGES if page.name != "log.md"]
RELATIONS = {
    "to the left of": "left of",
    "to the right of": "right of",
    "above": "above",
    "below": "below",
}
ANSWERS = {"There is a red cat and a blue dog. What color is the cat?": "red"}
"""Answers to questions that need no image."""

pytestmark = pytest.mark.slow

_NAMES = {plural(thing): thing for thing in THINGS} | {thing: thing for thing in THINGS}
_NOUN = re.compile(
    rf"(an?|{'|'.join(NUMBER_WORDS)}) (?:({'|'.join(COLORS)}) )?({'|'.join(_NAMES)})"
)


@pytest.fixture(scope="module")
def pipe() -> Blip3oPipeline:
    return Blip3oPipeline.from_pretrained("pocket")


def asked_for(prompt: str) -> tuple[list[WantedThing], tuple[int, str, int] | None] | None:
    """Returns the objects and relation of a prompt; None if it does not describe a scene."""
    relation, parts = None, re.split(r", | and ", prompt)
    for words, name in RELATIONS.items():
        if f" {words} " in prompt:
            relation, parts = (0, name, 1), prompt.split(f" {words} ")
    wanted = []
    for part in parts:
        found = _NOUN.fullmatch(part)
        if found is None:
            return None
        count = NUMBER_WORDS.index(found[1]) if found[1] in NUMBER_WORDS else 1
        wanted.append(WantedThing(thing=_NAMES[found[3]], color=found[2], count=count))
    return wanted, relation


def check_image(image: Image.Image, prompt: str) -> None:
    asked = asked_for(prompt)
    assert asked is not None, prompt
    wanted, relation = asked
    found = detect(image)
    assert judge_scene(found, wanted, relation, exact_count=True), (prompt, found)
    assert len(found) == sum(one.count for one in wanted), (prompt, found)


def check_edit(before: Image.Image, after: Image.Image, instruction: str) -> None:
    objects = detect(before)
    colored = re.fullmatch(r"make the (\w+) (\w+)", instruction)
    removed = re.fullmatch(r"remove the (\w+)", instruction)
    if colored:
        expected = [
            dataclasses.replace(one, color=colored[2]) if one.thing == colored[1] else one
            for one in objects
        ]
    else:
        assert removed, instruction
        expected = [one for one in objects if one.thing != removed[1]]
    assert expected != list(objects), instruction
    found = detect(after)
    assert same_objects(found, expected), (instruction, found)


def right_answer(image: Image.Image, question: str) -> str:
    objects = detect(image)
    named = [phrase(Group(thing=one.thing, color=one.color, count=1)) for one in objects]
    if question == "What is in the image?":
        return join(named)
    related = re.fullmatch(rf"What is ({'|'.join(RELATIONS)}) the (\w+)\?", question)
    assert related, f"no rule for the question {question!r}"
    (base,) = [one for one in objects if one.thing == related[2]]
    axis = "x" if "left" in related[1] or "right" in related[1] else "y"
    is_before = related[1] in ("to the left of", "above")
    (answer,) = [
        name
        for one, name in zip(objects, named, strict=True)
        if one is not base and (vars(one)[axis] < vars(base)[axis]) == is_before
    ]
    return answer


def blocks(page: Path, language: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def command_of(line: str) -> list[str] | None:
    try:
        words = shlex.split(line, comments=True)
    except ValueError:
        return None
    is_ours = len(words) > 2 and words[0] == "blip3o" and "..." not in line
    return words[1:] if is_ours and words[1] in ("generate", "ask", "edit", "reconstruct") else None


def sessions() -> dict[str, list[list[str]]]:
    """Returns the commands of each console block that use the bundled model, in order."""
    found = {}
    for page in PAGES:
        for number, block in enumerate(blocks(page, "console")):
            words = [command_of(line) for line in block.replace("\\\n", " ").splitlines()]
            ours = [one for one in words if one and not {"--model", "--server"} & {*one}]
            if ours:
                found[f"{page.name} {number}"] = ours
    return found


@pytest.mark.parametrize("commands", sessions().values(), ids=sessions())
def test_commands(
    commands: Sequence[list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for words in commands:
        options = build_parser().parse_args(words)
        files = options.image if words[0] == "ask" else [vars(options).get("image", "")]
        if words[0] != "generate" and not Path(files[0]).exists():
            continue  # the example uses a photo of the reader
        assert main(words) == 0
        output = capsys.readouterr().out
        if words[0] == "generate":
            rows = (options.out / "metadata.jsonl").read_text().splitlines()
            assert len(rows) == len(options.prompt) * options.num_images
            for row in map(json.loads, rows):
                check_image(Image.open(options.out / row["file"]), row["prompt"])
        elif words[0] == "ask":
            assert output == right_answer(Image.open(files[0]), files[1]) + "\n"
        elif words[0] == "edit":
            check_edit(Image.open(files[0]), Image.open(options.out), options.instruction)
        else:
            before, after = (detect(Image.open(one)) for one in (files[0], options.out))
            assert same_objects(after, before)


def pocket_code() -> dict[str, str]:
    return {
        f"{page.name} {number}": code
        for page in PAGES
        for number, code in enumerate(blocks(page, "python"))
        if 'from_pretrained("pocket")' in code
    }


def first_argument(code: str, name: str, position: int = 0) -> str:
    """Returns a positional text argument of a call of `pipe` or one of its methods."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == name:
            return ast.literal_eval(node.args[position])
    raise LookupError(name)


@pytest.mark.parametrize("code", pocket_code().values(), ids=pocket_code())
def test_python(code: str) -> None:
    names: dict[str, Any] = {}
    torch.manual_seed(0)
    exec(compile(code, "example", "exec"), names)
    for image in names["images"]:
        check_image(image, first_argument(code, "pipe"))
    assert names["answer"] == right_answer(names["images"][0], first_argument(code, "pipe.ask", 1))
    check_edit(names["images"][0], names["edited"], first_argument(code, "pipe.edit", 1))


def test_requests_to_the_server(pipe: Blip3oPipeline) -> None:
    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    prompts = set(re.findall(r'prompt"?[:=] ?"([^"]+)"', text))
    drawn = [one for one in prompts if asked_for(one)]
    assert len(drawn) > 0
    first = {}
    for prompt in drawn:
        images = pipe([prompt] * 2, generator=[image_generator(0, 0, k) for k in range(2)]).images
        for image in images:
            check_image(image, prompt)
        first[prompt] = images[0]
    for prompt in prompts - set(drawn):
        if "make the" in prompt or "remove the" in prompt:
            (image,) = first.values()
            after = pipe.edit(image, prompt, generator=image_generator(0, 0, 0)).images[0]
            check_edit(image, after, prompt)
    for content in set(re.findall(r'(?:content|text|input)"?[:=] ?"([^"]+)"', text)):
        if asked_for(content):
            check_image(pipe(content, generator=image_generator(0, 0, 0)).images[0], content)
        elif content in ANSWERS:
            assert pipe.ask(None, content) == ANSWERS[content]
        elif content.endswith("?"):
            (image,) = first.values()
            assert pipe.ask(image, content) == right_answer(image, content)
        else:
            pytest.fail(f"no rule for {content!r}")


def scene_of(found: Sequence[SceneDetection], background: str) -> Scene:
    objects = tuple(
        Placed(thing=one.thing, color=one.color, x=one.x, y=one.y, size=one.size) for one in found
    )
    return Scene(background=background, objects=objects)


def check_description(output: str, image: Image.Image) -> None:
    background = output.rpartition(", on a")[2].removeprefix("n").strip(" .")
    scene = scene_of(detect(image), background.removesuffix(" background"))
    assert output in descriptions(scene)


def descriptions(scene: Scene) -> tuple[str, str]:
    """Returns the two right forms: models of different data answer with one or the other."""
    return description(scene), detailed_caption(scene)


def test_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["demo.py", "--out", str(tmp_path)])
    demo = runpy.run_path(str(ROOT / "examples" / "demo.py"), run_name="__main__")
    output = capsys.readouterr().out
    images = [Image.open(one) for one in sorted(tmp_path.glob("0*.png"))]
    for image, prompt in zip(images, demo["PROMPTS"], strict=False):
        check_image(image, prompt)
    check_edit(images[0], images[-1], demo["INSTRUCTION"])
    (description,) = re.findall(r"described the third image: (.*)", output)
    check_description(description, images[2])


def test_the_page(pipe: Blip3oPipeline) -> None:
    examples = pytest.importorskip("blip3o.serve.page.examples")
    for prompt in examples.PROMPTS:
        generators = [image_generator(0, 0, k) for k in range(4)]
        for image in pipe([prompt] * 4, generator=generators).images:
            check_image(image, prompt)
    for scene, instruction in zip(examples.SCENES, examples.INSTRUCTIONS, strict=True):
        image = render(scene, 384)
        assert pipe.ask(image, examples.QUESTION) in descriptions(scene)
        edited = pipe.edit(image, instruction, generator=image_generator(0, 0, 0)).images[0]
        check_edit(image, edited, instruction)


@pytest.mark.parametrize(
    ("check", "right", "wrong"),
    [
        (check_image, "a blue cat to the left of a green tree", "a green cat"),
        (check_image, "a blue cat and a green tree", "a green tree to the left of a blue cat"),
    ],
)
def test_the_checks_reject_wrong_results(
    check: Callable[[Image.Image, str], None], right: str, wrong: str
) -> None:
    examples = pytest.importorskip("blip3o.serve.page.examples")
    image = render(examples.SCENES[0], 384)
    check(image, right)
    with pytest.raises(AssertionError):
        check(image, wrong)
    assert right_answer(image, "What is to the left of the tree?") == "a blue cat"
    with pytest.raises(AssertionError):
        check_edit(image, image, "remove the tree")
