"""blip3o: unified multimodal models that write text and generate image features.

The public entry point is `Blip3oPipeline`; it is imported on first use, so that `import blip3o`
costs nothing and touches neither torch nor the network.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from blip3o.generate.pipeline import Blip3oPipeline

__version__ = "0.1.0"
__all__ = ["Blip3oPipeline", "__version__"]


def __getattr__(name: str) -> Any:  # noqa: ANN401  (module attribute protocol)
    if name == "Blip3oPipeline":
        from blip3o.generate.pipeline import Blip3oPipeline

        return Blip3oPipeline
    raise AttributeError(f"module 'blip3o' has no attribute {name!r}")
