"""Quantization of a unified model: the linear layers of the backbone's language model.

These layers hold most of a model's bytes, with those of the same shape that a generator may own.
All other parts keep their precision: the embedding table, the vocabulary head, the vision tower,
the rest of the generator and the image decoder.
"""

from blip3o.models.unified import UnifiedModel
from blip3o.nn.quantized import Quantization, QuantizedLinear, quantize_linears


def quantize_backbone(model: UnifiedModel, kind: Quantization) -> list[str]:
    """Quantizes the linear layers of the language model's blocks and of their copies, in place.

    Args:
        model: the model; its weights may be on the meta device.
        kind: "int8" or "int4".

    Returns:
        Names of the quantized layers in the model.
    """
    copies = [f"generator.{name}" for name in model.generator.quantizable]
    return [
        f"{part}.{name}"
        for part in ("backbone.decoder", *copies)
        for name in quantize_linears(model.get_submodule(part), kind)
    ]


def is_quantized(model: UnifiedModel) -> bool:
    """Returns whether the backbone has quantized layers."""
    return any(isinstance(module, QuantizedLinear) for module in model.backbone.modules())
