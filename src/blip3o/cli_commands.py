"""L7: the commands of `blip3o`. Each one imports its libraries only when it runs."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, cast

from blip3o.cli_options import check_model, placement
from blip3o.core.errors import UsageError
from blip3o.core.files import home_path
from blip3o.core.log import say
from blip3o.core.options import from_options
from blip3o.serve.config import ServeConfig
from blip3o.weights.names import check_name

if TYPE_CHECKING:
    from PIL import Image

    from blip3o.generate.pipeline import Blip3oPipeline
    from blip3o.generate.text_settings import TextSettings
    from blip3o.remote.http import ServerSettings


def _pipeline(options: argparse.Namespace) -> "Blip3oPipeline":
    from blip3o.generate.pipeline import Blip3oPipeline

    return Blip3oPipeline.from_pretrained(
        options.model, revision=options.revision, overrides=options.set, **placement(options)
    )


def _server(options: argparse.Namespace) -> "ServerSettings":
    from blip3o.generate.served import server_settings

    return server_settings(options.server, options.model)


class _Sampling(TypedDict):
    """The options of `add_sampling` besides the seed, by the names of Python."""

    num_inference_steps: int | None
    guidance_scale: float | None


def _sampling(options: argparse.Namespace) -> _Sampling:
    return {"num_inference_steps": options.steps, "guidance_scale": options.guidance}


def generate(options: argparse.Namespace) -> None:
    """Generates images of prompts and prints the paths of all files."""
    from blip3o.generate.checks import check_prompt, check_sampling, drawn_seed, read_prompts

    prompts = [*options.prompt, *(read_prompts(options.prompts) if options.prompts else [])]
    if not prompts:
        raise UsageError("no prompt: give prompts or --prompts FILE")
    for prompt in prompts:
        check_prompt(prompt)
    check_sampling(options.steps, options.guidance, options.num_images)
    check_model(options)
    seed = drawn_seed(options.seed)
    from blip3o.generate.write import written_images

    given = (prompts, options.out)
    sampling = _sampling(options)
    if options.server is None:
        from blip3o.generate import local

        grid = local.write_images(
            _pipeline(options), *given, num_images=options.num_images, seed=seed, **sampling
        )
    else:
        from blip3o.generate import served

        grid = served.write_images(
            _server(options), *given, num_images=options.num_images, seed=seed, **sampling
        )
    for path in written_images(options.out):
        print(path)
    print(grid)


def ask(options: argparse.Namespace) -> None:
    """Prints the answer to a question about images."""
    from blip3o.generate.checks import check_question

    *images, question = options.image
    if not images:
        raise UsageError('no question: give one after the images, blip3o ask IMAGE... "QUESTION"')
    check_question(question)
    images = [_image(image, options) for image in images]
    settings = _text_settings(options)
    if options.server is None:
        print(_pipeline(options).ask(images, question, **settings))
        return
    from blip3o.generate import served

    print(served.ask(_server(options), [Path(one) for one in images], question, **settings))


def chat(options: argparse.Namespace) -> None:
    """Holds a conversation until the input ends."""
    check_model(options)
    from blip3o.generate.chat import converse

    settings = _text_settings(options)
    converse(_pipeline(options), sys.stdin, sys.stdout, **settings)


def _text_settings(options: argparse.Namespace) -> "TextSettings":
    """Returns the given settings of text sampling; refuses bad ones before a model is loaded."""
    from blip3o.generate.text_settings import TextSampling, TextSettings

    names = TextSettings.__optional_keys__
    given = {k: v for k, v in vars(options).items() if k in names and v is not None}
    if given.get("seed") == -1:
        given["seed"] = TextSampling().seeded().seed
        say(f"seed {given['seed']}")
    TextSampling.of(**given)
    return cast("TextSettings", given)


def edit(options: argparse.Namespace) -> None:
    """Edits an image and prints the path of the result."""
    from blip3o.generate.checks import check_image_path, check_prompt, check_sampling, drawn_seed

    check_image_path(options.out)
    check_prompt(options.instruction)
    check_sampling(options.steps, options.guidance, 1)
    image = _image(options.image, options)
    seed = drawn_seed(options.seed)
    sampling = _sampling(options)
    if options.server is None:
        from blip3o.core.rng import image_generator

        generator = image_generator(seed, 0, 0)
        output = _pipeline(options).edit(
            image, options.instruction, generator=generator, **sampling
        )
        edited = output.images[0]
    else:
        from blip3o.generate import served

        edited = served.edit(
            _server(options), Path(image), options.instruction, seed=seed, **sampling
        )
    _save(edited, options.out)


def reconstruct(options: argparse.Namespace) -> None:
    """Reconstructs an image and prints the path of the result."""
    from blip3o.generate.checks import check_image_path, drawn_seed

    check_image_path(options.out)
    image = _image(options.image, options)
    seed = drawn_seed(options.seed)
    from blip3o.core.rng import image_generator

    generator = image_generator(seed, 0, 0)
    _save(_pipeline(options).reconstruct(image, generator=generator).images[0], options.out)


def _image(file: str, options: argparse.Namespace) -> str:
    """Returns the path of an image after checking it and the model's options without torch."""
    from blip3o.generate.checks import check_readable

    check_model(options)
    path = str(home_path(file))
    check_readable(path)
    return path


def _save(image: "Image.Image", path: Path) -> None:
    from blip3o.generate.write import save_image

    save_image(image, path)
    print(path)


def serve(options: argparse.Namespace) -> None:
    """Runs the server until a signal stops it."""
    check_model(options)
    try:
        from blip3o.serve.http.server import serve
    except ImportError as error:
        raise UsageError(f"{error.name} is missing: pip install 'blip3o[serve]'") from error
    serve(
        from_options(ServeConfig, options),
        options.model,
        revision=options.revision,
        overrides=options.set,
        **placement(options),
    )


def train(options: argparse.Namespace) -> None:
    """Trains a recipe or resumes its run."""
    from blip3o.runs import check_recipe

    check_recipe(options.recipe)
    from blip3o.runs.start import train_recipe

    train_recipe(options.recipe, options.out, options.overrides)


def study(options: argparse.Namespace) -> int:
    """Does the runs of a study and prints its report, or lists the studies."""
    from blip3o.core.shard import WHOLE, Shard
    from blip3o.study import STUDIES, describe_studies

    if options.study is None:
        print(describe_studies())
        return 0
    STUDIES.place(options.study)
    shard = WHOLE if options.shard is None else Shard.parse(options.shard)
    if options.out is None:
        raise UsageError("no folder for the study: add --out DIR")
    from blip3o.study.start import run_study

    study = STUDIES.get(options.study)()
    is_complete = run_study(study, options.out, options.overrides, shard)
    print(options.out / "report.md")
    return 0 if is_complete else 1


def scenes(options: argparse.Namespace) -> None:
    """Writes the scenes data set and prints its folder."""
    from blip3o.runs.scenes import export

    export(options.out, options.overrides)
    print(options.out)


def convert(options: argparse.Namespace) -> None:
    """Converts a checkpoint and prints the folder."""
    check_name(options.source)
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
    """Prints the list of recipes, or one recipe as YAML."""
    from blip3o.recipes import describe_recipes
    from blip3o.runs import check_recipe

    if options.action == "list" and options.name is not None:
        raise UsageError(
            f"list takes no name; to show a recipe: blip3o recipes show {options.name}"
        )
    if options.action == "show":
        if options.name is None:
            raise UsageError("no recipe: give its name, blip3o recipes show NAME")
        check_recipe(options.name)
        from blip3o.runs.start import recipe_yaml

        print(recipe_yaml(options.name), end="")
    else:
        print(describe_recipes())


def models(options: argparse.Namespace) -> None:
    """Prints the known models."""
    from blip3o.weights.names import describe_models

    del options
    print(describe_models())


def doctor(options: argparse.Namespace) -> None:
    """Prints a description of this machine and of the memory that a model needs."""
    if options.model is not None:
        check_name(options.model)
    from blip3o.doctor.report import examine

    print(examine(options.model, options.device))
