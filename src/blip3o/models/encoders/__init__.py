"""Image encoders: pixels to the semantic features that the generator learns to produce."""

from blip3o.core.registry import Registry

ENCODERS = Registry(
    "image encoder",
    {
        "pocket": ".pocket:PocketEncoderConfig",
        "siglip2": ".siglip2:Siglip2EncoderConfig",
        "eva_clip": ".eva_clip:EvaClipEncoderConfig",
        "clip": ".clip:ClipEncoderConfig",
        "vae": ".vae:VaeEncoderConfig",
    },
    package=__name__,
)
