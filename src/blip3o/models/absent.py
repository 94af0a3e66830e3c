"""Stand-in for a part whose weights a model folder does not hold."""

from typing import ClassVar, NoReturn

from blip3o.core.errors import UsageError
from blip3o.models.protocols import ImageDecoder, ImageEncoder

_REASONS = {
    "image_encoder": (
        "this model has no image encoder: its checkpoint holds no EVA-CLIP tower "
        "(model.gen_vision_tower.*); convert a checkpoint that does, as training saves it"
    ),
    "image_decoder": (
        "this model has no image decoder: its folder holds no diffusion-decoder/; put that "
        'folder of the released model next to config.json, or ask for output_type="features"'
    ),
}


class AbsentPart(ImageEncoder, ImageDecoder):
    """A part without weights: the config knows its sizes, and every use raises an error.

    Args:
        name: "image_encoder" or "image_decoder".
    """

    seams: ClassVar[tuple[str, ...]] = ("forward", "decode")

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, *args: object, **kwargs: object) -> NoReturn:
        """Refuses to run.

        Raises:
            UsageError: always; the message says which part is missing and how to get it.
        """
        del args, kwargs
        raise UsageError(_REASONS[self.name])

    decode = forward
