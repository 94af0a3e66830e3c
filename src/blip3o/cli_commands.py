"""L7: what each command of `blip3o` calls and prints; libraries are imported only when it runs."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blip3o.core.errors import UsageError
from blip3o.core.log import say
from blip3o.serve.config import from_options

if TYPE_CHECKING:
    from PIL import Image

    from blip3o.generate.pipeline import Blip3oPipeline
    from blip3o.generate.text_sampling import TextSettings


def _pipeline(options: argparse.Namespace) -> "Blip3oPipeline":
    from blip3o.generate.pipeline import Blip3oPipeline

    return Blip3oPipeline.from_pretrained(
        options.model, revision=options.revision, overrides=options.set, **_placing(options)
    )


def _placing(options: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(options, name) for name in ("device", "dtype", "quantize", "offload")}


def generate(options: argparse.Namespace) -> None:
    """Writes pictures of prompts and prints the contact sheet's path."""
    from blip3o.generate.write import read_prompts, write_pictures

    prompts = [*options.prompt, *(read_prompts(options.prompts) if options.prompts else [])]
    if not prompts:
        raise UsageError("no prompt: give prompts or --prompts FILE")
    grid = write_pictures(
        _pipeline(options),
        prompts,
        options.out,
        num_images=options.num_images,
        seed=options.seed,
        num_inference_steps=options.steps,
        guidance_scale=options.guidance,
    )
    print(grid)


def ask(options: argparse.Namespace) -> None:
    """Prints the answer to a question about pictures."""
    *images, question = options.image
    if not images:
        raise UsageError('no question: blip3o ask IMAGE... "QUESTION"')
    settings = _text_settings(options)
    print(_pipeline(options).ask(images, question, **settings))


def chat(options: argparse.Namespace) -> None:
    """Talks until the input ends."""
    from blip3o.generate.chat import converse

    settings = _text_settings(options)
    converse(_pipeline(options), sys.stdin, sys.stdout, **settings)


def _text_settings(options: argparse.Namespace) -> "TextSettings":
    """Returns the settings of text that were given; refuses bad ones before a model is loaded."""
    from blip3o.generate.text_sampling import TextSampling, TextSettings

    every = {name: getattr(options, name) for name in TextSettings.__optional_keys__}
    given: Any = {name: value for name, value in every.items() if value is not None}
    if given.get("seed") == -1:
        given["seed"] = TextSampling().seeded().seed
        say(f"seed {given['seed']}")
    TextSampling.of(**given)
    return given


def edit(options: argparse.Namespace) -> None:
    """Writes a changed picture and prints its path."""
    from blip3o.generate.write import check_picture_path, picture_generator

    check_picture_path(options.out)
    output = _pipeline(options).edit(
        options.image,
        options.instruction,
        generator=picture_generator(options.seed, 0, 0),
        num_inference_steps=options.steps,
        guidance_scale=options.guidance,
    )
    _save(output.images[0], options.out)


def reconstruct(options: argparse.Namespace) -> None:
    """Writes a picture's reconstruction and prints its path."""
    from blip3o.generate.write import check_picture_path, picture_generator

    check_picture_path(options.out)
    generator = picture_generator(options.seed, 0, 0)
    _save(_pipeline(options).reconstruct(options.image, generator=generator).images[0], options.out)


def _save(image: "Image.Image", path: Path) -> None:
    from blip3o.generate.write import save_picture

    save_picture(image, path)
    print(path)


def serve(options: argparse.Namespace) -> None:
    """Serves until it is told to stop."""
    try:
        from blip3o.serve.http.server import serve
    except ImportError as error:
        raise UsageError(f"{error.name} is missing: pip install 'blip3o[serve]'") from error
    serve(
        from_options(options),
        options.model,
        revision=options.revision,
        overrides=options.set,
        **_placing(options),
    )


def train(options: argparse.Namespace) -> None:
    """Trains a recipe."""
    from blip3o.recipes import train_recipe

    train_recipe(options.recipe, options.out, options.overrides)


def eval(options: argparse.Namespace) -> None:
    """Scores a model and prints the result as JSON."""
    from blip3o.eval import run_benchmark

    results = run_benchmark(
        options.benchmark,
        options.model,
        options.out,
        options.overrides,
        revision=options.revision,
        model_overrides=options.set,
        **_placing(options),
    )
    print(json.dumps({key: results[key] for key in ("benchmark", "overall", "by_category")}))


def scenes(options: argparse.Namespace) -> None:
    """Writes the scenes data set and prints its folder."""
    from blip3o.recipes.scenes import export

    export(options.out, options.overrides)
    print(options.out)


def convert(options: argparse.Namespace) -> None:
    """Converts a checkpoint and prints the folder."""
    from blip3o.weights.convert import convert

    convert(
        options.source,
        options.dest,
        options.to,
        options.revision,
        allow_pickle=options.allow_pickle,
    )
    print(options.dest)


def recipes(options: argparse.Namespace) -> None:
    """Prints the recipes, or one of them as YAML."""
    from blip3o.recipes import describe_recipes, recipe_yaml

    if options.action == "show":
        if options.name is None:
            raise UsageError("which recipe? blip3o recipes show NAME")
        print(recipe_yaml(options.name), end="")
    else:
        print(describe_recipes())


def models(options: argparse.Namespace) -> None:
    """Prints the models at hand."""
    from blip3o.weights.folder import describe_models

    del options
    print(describe_models())


def doctor(options: argparse.Namespace) -> None:
    """Prints what this machine can do."""
    from blip3o.recipes.doctor import examine

    print(examine(options.model, options.device))
