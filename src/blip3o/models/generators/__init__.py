"""Generators: the parts of a unified model that draw image features."""

from blip3o.core.registry import Registry

GENERATORS = Registry(
    "generator",
    {
        "query_dit": ".query_dit:QueryDiTConfig",
        "regression": ".regression:RegressionConfig",
        "transfusion": ".transfusion:TransfusionConfig",
        "lmfusion": ".lmfusion:LMFusionConfig",
    },
    package=__name__,
)
"""Configs of all generators by name; `models.generators.plan` describes their interface."""
