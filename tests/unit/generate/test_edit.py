"""Edits and reconstructions: their inputs and their errors."""

import dataclasses
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from blip3o.core.errors import UsageError
from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.models.generators.query_dit import QueryDiT

RED, BLUE = (Image.new("RGB", (16, 16), color) for color in ("red", "blue"))


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def edit(pipe: Blip3oPipeline, *arguments: Any, **options: Any) -> Tensor:
    return pipe.edit(*arguments, output_type="features", **options).images


def test_an_edit_depends_on_its_image_and_its_instruction(tiny_pipe: Blip3oPipeline) -> None:
    first = edit(tiny_pipe, RED, "add a cat", generator=seeded(0))
    assert torch.equal(edit(tiny_pipe, RED, "add a cat", generator=seeded(0)), first)
    assert not torch.equal(edit(tiny_pipe, BLUE, "add a cat", generator=seeded(0)), first)
    assert not torch.equal(edit(tiny_pipe, RED, "add a dog", generator=seeded(0)), first)


def test_the_generator_gets_the_image_as_reference(
    tiny_pipe: Blip3oPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    assert isinstance(tiny_pipe.model.generator, QueryDiT)
    plain = tiny_pipe.model.generator.prepare

    def watch(*arguments: Any, **options: Any) -> Any:
        seen.append(options["reference"])
        return plain(*arguments, **options)

    monkeypatch.setattr(tiny_pipe.model.generator, "prepare", watch)
    edit(tiny_pipe, [RED, BLUE], ["a", "b"], num_images_per_prompt=2)
    expected = tiny_pipe.model.normalizer(tiny_pipe.encode([RED, BLUE]))
    torch.testing.assert_close(seen[0], expected, rtol=0, atol=1e-5)


def test_edits_of_a_batch_equal_each_alone(tiny_pipe: Blip3oPipeline) -> None:
    texts = ["add a cat", "make all of the background of this picture blue"]
    both = edit(tiny_pipe, [RED, BLUE], texts, generator=seeded(1, 2))
    for row, image in enumerate((RED, BLUE)):
        alone = edit(tiny_pipe, image, texts[row], generator=seeded(row + 1))
        scale = float(alone.abs().max())
        torch.testing.assert_close(both[row : row + 1], alone, rtol=0, atol=1e-4 * scale)


def test_one_image_serves_several_instructions(tiny_pipe: Blip3oPipeline) -> None:
    one = edit(tiny_pipe, RED, ["a", "b"], generator=seeded(1, 2))
    two = edit(tiny_pipe, [RED, RED], ["a", "b"], generator=seeded(1, 2))
    assert torch.equal(one, two)


def test_a_model_without_reference_input_edits_through_the_backbone(
    tiny_pipe: Blip3oPipeline,
) -> None:
    """The layout of the published models."""
    config = tiny_pipe.model.config
    generator = dataclasses.replace(config.generator, takes_reference=False)
    config = dataclasses.replace(config, generator=generator)
    torch.manual_seed(0)
    plain = Blip3oPipeline(config.build(), tiny_pipe.tokenizer)
    for parameter in plain.model.get_submodule("generator.dit").parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    red, blue = (edit(plain, one, "add a cat", generator=seeded(0)) for one in (RED, BLUE))
    assert not torch.equal(red, blue)


@pytest.mark.parametrize(
    ("images", "texts", "message"),
    [
        (RED, "", "the prompt is empty"),
        (RED, "cat " * 200, "the prompt has .* tokens"),
        (RED, "like <image>", "images are given separately"),
        ([RED], ["a", "b"], "1 images for 2 instructions"),
        ([RED, BLUE], "a", "2 images for 1 instructions"),
        ([], "a", "0 images for 1 instructions"),
        (RED, [], "no prompt was given"),
        ([], [], "no prompt was given"),
    ],
)
def test_edits_that_do_not_fit_are_refused(
    tiny_pipe: Blip3oPipeline, images: Any, texts: Any, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        tiny_pipe.edit(images, texts)


def test_reconstruction_decodes_the_images_own_features(tiny_pipe: Blip3oPipeline) -> None:
    model = tiny_pipe.model
    got = tiny_pipe.reconstruct([RED, BLUE], output_type="features").images
    assert torch.equal(got, model.normalizer(tiny_pipe.encode([RED, BLUE])))
    images = tiny_pipe.reconstruct([RED, BLUE], generator=seeded(1, 2)).images
    again = tiny_pipe.reconstruct(BLUE, generator=seeded(2)).images
    assert [p.size for p in images] == [(16, 16)] * 2
    difference = torch.tensor(list(images[1].tobytes())) - torch.tensor(list(again[0].tobytes()))
    assert int(difference.abs().max()) <= 1
    with pytest.raises(UsageError, match="no image was given"):
        tiny_pipe.reconstruct([])
    with pytest.raises(UsageError, match="unknown output_type"):
        tiny_pipe.reconstruct(RED, output_type="jpeg")  # type: ignore[arg-type]
