"""Unified multimodal models that read text and images and write both.

The public entry point is `Blip3oPipeline`. All names are imported on first use, so `import blip3o`
is fast and imports neither torch nor a network library.
"""

TYPE_CHECKING = False  # `typing` would take longer to import than this module
if TYPE_CHECKING:
    from blip3o.core.errors import UsageError
    from blip3o.core.types import Message
    from blip3o.generate.outputs import ImageOutput
    from blip3o.generate.pipeline import Blip3oPipeline

__version__ = "0.1.0"
__all__ = ["Blip3oPipeline", "ImageOutput", "Message", "UsageError", "__version__"]

_PLACES = {
    "Blip3oPipeline": "blip3o.generate.pipeline",
    "ImageOutput": "blip3o.generate.outputs",
    "Message": "blip3o.core.types",
    "UsageError": "blip3o.core.errors",
}


def __getattr__(name: str) -> object:
    import importlib

    if name not in _PLACES:
        raise AttributeError(f"module 'blip3o' has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, *(name for name in globals() if name not in __all__)]
