"""Which parts of a unified model are quantized: the matrices of the backbone's language model.

They are most of a model's bytes. The embedding table and the vocabulary head, the vision tower, the
DiT and the image decoder keep their precision.
"""

from blip3o.models.unified import UnifiedModel
from blip3o.nn.quantized import Quantization, QuantizedLinear, quantize_linears

_PART = "backbone.decoder"


def quantize_backbone(model: UnifiedModel, kind: Quantization) -> list[str]:
    """Quantizes the linear layers of the language model's blocks, in place.

    Args:
        model: its weights may be on the meta device.
        kind: "int8" or "int4".

    Returns:
        Names of the quantized layers, within the model.
    """
    return [f"{_PART}.{name}" for name in quantize_linears(model.get_submodule(_PART), kind)]


def is_quantized(model: UnifiedModel) -> bool:
    """Returns whether a layer of the backbone is quantized."""
    return any(isinstance(module, QuantizedLinear) for module in model.backbone.modules())
