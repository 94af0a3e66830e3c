"""The place of a part whose weights a model folder does not hold."""

from typing import NoReturn

from torch import nn

from blip3o.core.errors import UsageError

_REASONS = {
    "image_encoder": (
        "this model has no image encoder: its checkpoint held no EVA-CLIP tower "
        "(model.gen_vision_tower.*); convert one that does, as training saves it"
    ),
    "image_decoder": (
        "this model has no image decoder: its folder held no diffusion-decoder/; put that folder "
        'of the released model beside config.json, or ask for output_type="features"'
    ),
}


class AbsentPart(nn.Module):
    """A part without weights: its sizes are known to the config, and every use of it is refused.

    Args:
        name: "image_encoder" or "image_decoder".
    """

    layers: tuple[nn.Module, ...] = ()

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, *args: object, **kwargs: object) -> NoReturn:
        """Refuses to encode.

        Raises:
            UsageError: always; it says what is missing and how to get it.
        """
        del args, kwargs
        raise UsageError(_REASONS[self.name])

    decode = forward
