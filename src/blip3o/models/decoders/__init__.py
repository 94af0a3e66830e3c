"""Image decoders: features back to pixels."""

from blip3o.core.registry import Registry

DECODERS = Registry(
    "image decoder",
    {
        "pocket": ".pocket:PocketDecoderConfig",
        "sdxl": ".sdxl:SdxlDecoderConfig",
        "sana": ".sana:SanaDecoderConfig",
        "vae": ".vae:VaeDecoderConfig",
    },
    package=__name__,
)
