"""Image decoders: features back to pixels."""

from blip3o.core.registry import Registry

DECODERS = Registry("image decoder", {"pocket": ".pocket:PocketDecoderConfig"}, package=__name__)
