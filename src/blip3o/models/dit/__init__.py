"""Diffusion transformers: the networks that predict the velocity of image features."""

from blip3o.core.registry import Registry

DITS = Registry("dit", {"nextdit": ".nextdit:NextDiTConfig"}, package=__name__)
"""Every DiT by name; an entry is a config with `build()`, `tiny()` and the seam `velocity`."""
