"""Images of prompts by a pipeline of this process, written to a folder."""

from collections.abc import Sequence
from pathlib import Path

from blip3o.core.rng import image_generator
from blip3o.generate.checks import check_sampling
from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.generate.requests import drawing_prompt
from blip3o.generate.write import GeneratedImage, NumberedPrompt, write_generated


def write_images(
    pipe: Blip3oPipeline,
    prompts: Sequence[str],
    folder: Path,
    *,
    num_images: int = 1,
    seed: int = 0,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    batch_size: int = 16,
) -> Path:
    """Generates images, writes them as `write_generated` does, and returns the path of the grid.

    Args:
        pipe: the pipeline.
        prompts: one or more captions.
        folder: created if missing.
        num_images: images of each prompt.
        seed: together with the numbers of the prompt and the image, it determines the image.
        num_inference_steps: steps of the generator; None for the model's own number.
        guidance_scale: 1 or more; None for the model's own number.
        batch_size: images per batch; affects only speed and memory.

    Raises:
        UsageError: for an empty or over-long prompt, a number out of range, or a folder that
            cannot be written to.
    """
    sampling = pipe.model.config.sampling
    steps = sampling.num_inference_steps if num_inference_steps is None else num_inference_steps
    scale = pipe.model.config.guidance(guidance_scale)
    check_sampling(steps, scale, num_images)
    for prompt in prompts:  # a bad prompt at the end of a list must not cost the work before it
        messages = pipe.chat_template.generate_messages(prompt)
        drawing_prompt(pipe.model, pipe.chat_template, messages, prompt)

    def draw(batch: Sequence[NumberedPrompt]) -> list[GeneratedImage]:
        images = pipe(
            [one.text for one in batch],
            generator=[image_generator(seed, one.prompt_number, one.image_number) for one in batch],
            num_inference_steps=steps,
            guidance_scale=scale,
        ).images
        return [GeneratedImage(image, steps, scale) for image in images]

    return write_generated(
        draw, prompts, folder, num_images=num_images, seed=seed, batch_size=batch_size
    )
