"""Autoregressive backbones: token and image embeddings to hidden states and logits."""

from blip3o.core.registry import Registry

BACKBONES = Registry(
    "backbone",
    {
        "pocket": ".pocket:PocketBackboneConfig",
        "qwen3": ".qwen3:Qwen3BackboneConfig",
        "qwen2_5_vl": ".qwen2_5_vl:Qwen2_5VLBackboneConfig",
        "llama3": ".llama3:Llama3BackboneConfig",
    },
    package=__name__,
)
