"""The folder of a published VAE as diffusers writes it: both halves of an autoencoder.

    config.json                                       `_class_name` and the fields of the class
    diffusion_pytorch_model[.VARIANT].safetensors     one file, or shards with an index

A run whose image encoder and image decoder are `vae` may start from such a folder. It has no
language model, so it is two parts of a model and not a whole one.
"""

from collections.abc import Mapping
from pathlib import Path

from blip3o.core.errors import UsageError
from blip3o.models.encoders.vae import VaeEncoderConfig
from blip3o.models.unified import UnifiedModelConfig
from blip3o.weights.keymaps.spellings import DIFFUSERS_VAE
from blip3o.weights.shards import Weight, has_tensors, open_tensors
from blip3o.weights.small_files import read_json
from blip3o.weights.wrappers import unwrapped

STEM = "diffusion_pytorch_model"
"""Name of the weights of every component that diffusers writes."""

_CLASSES = ("AutoencoderKL", "AutoencoderDC")
_VARIANTS = (".bf16", "", ".fp16")
_ENCODING = ("encoder.", "quant_conv.")
_FACTORS = {"scaling_factor": 1.0, "shift_factor": 0.0}
"""Fields that normalize latents, and the values that diffusers means if they are missing."""


def is_autoencoder(folder: str | Path) -> bool:
    """Returns whether a folder has this layout, according to its config.json."""
    try:
        data = read_json(Path(folder) / "config.json")
    except UsageError:
        return False
    return isinstance(data, Mapping) and data.get("_class_name") in _CLASSES


def open_autoencoder(folder: Path, config: UnifiedModelConfig) -> dict[str, Weight]:
    """Returns the weights of both halves, by their names in a unified model.

    Args:
        folder: the folder.
        config: the model that they are for.

    Raises:
        UsageError: if files are missing or damaged, or the model normalizes latents by other
            numbers, which no shape would reveal.
    """
    data = read_json(folder / "config.json")
    encoder = config.image_encoder
    if isinstance(encoder, VaeEncoderConfig) and isinstance(data, Mapping):
        for name, default in _FACTORS.items():
            stored = data.get(name)
            stored = default if stored is None else stored
            if stored != getattr(encoder.autoencoder, name):
                raise UsageError(
                    f"{folder}/config.json says {name} {stored}, but "
                    f"model.image_encoder.autoencoder.{name} is "
                    f"{getattr(encoder.autoencoder, name)}"
                )
    return {
        f"image_encoder.{name}" if name.startswith(_ENCODING) else f"image_decoder.vae.{name}": one
        for name, one in DIFFUSERS_VAE.respelled(open_component(folder), str(folder)).items()
    }


def open_component(folder: Path) -> dict[str, Weight]:
    """Returns the tensors of a component that diffusers wrote, under the names in its files.

    Args:
        folder: the folder of the component.

    Raises:
        UsageError: if files are missing or damaged.
    """
    stems = [STEM + variant for variant in _VARIANTS]
    stem = next((stem for stem in stems if has_tensors(folder, stem)), STEM)
    return unwrapped(open_tensors(folder, stem), folder)
