"""Recipes of the other generation methods of the paper, at the sizes of the released models.

They start from the same weights as the recipes of `qwen2_5_vl` and train on the same data in as
many steps of as many samples, so the methods can be compared. No model of these methods was
published at these sizes.
"""

import dataclasses

from blip3o.models.backbones.qwen2_5_vl import Qwen2_5VLBackboneConfig
from blip3o.models.generators.lmfusion import LMFusionConfig
from blip3o.models.generators.plan import GeneratorConfig
from blip3o.models.generators.regression import RegressionConfig
from blip3o.models.generators.transfusion import TransfusionConfig
from blip3o.objectives.feature_regression import FeatureRegressionConfig
from blip3o.recipes.qwen2_5_vl import RELEASED_4B, RELEASED_8B, generation, joint
from blip3o.recipes.stages import image_loss, text_loss
from blip3o.train.config import InitConfig, RunConfig

_BETAS, _WARMUP_STEPS = (0.9, 0.95), 4000
"""Optimizer settings that the papers of Transfusion and of LMFusion share."""
_DEEP_4B, _DEEP_8B = 27, 9
"""Layers with which a regression head has as many parameters as the DiT, by size of the model."""


def regression_4b() -> RunConfig:
    """CLIP + MSE: query tokens and one linear map to the image features; backbone frozen.

    blip3o train blip3o_4b.regression --out runs/blip3o_4b/regression

    Hardware: 32 GPUs of 80 GB. Hours: about 18, estimated at 40 % MFU; not run yet.
    Source: the paper names the method and gives no settings; they are those of `generation`.
    """
    return _regression(Qwen2_5VLBackboneConfig.published_4b(), RELEASED_4B, num_layers=0)


def regression_deep_4b() -> RunConfig:
    """CLIP + MSE with a head of as many parameters as the DiT: 27 bidirectional layers.

    blip3o train blip3o_4b.regression_deep --out runs/blip3o_4b/regression_deep

    Hardware: 32 GPUs of 80 GB. Hours: about 19, estimated at 40 % MFU; not run yet.
    Source: ours. The linear head has less than a hundredth of the parameters of other generators.
    """
    return _regression(Qwen2_5VLBackboneConfig.published_4b(), RELEASED_4B, num_layers=_DEEP_4B)


def transfusion_4b() -> RunConfig:
    """Transfusion: the backbone's own layers draw; trained on captions and conversations.

    blip3o train blip3o_4b.transfusion --out runs/blip3o_4b/transfusion

    Hardware: 32 GPUs of 80 GB. Hours: about 39, estimated at 40 % MFU; not run yet.
    Source: loss weight, rates, warm-up, betas and decay of the paper (arXiv 2408.11039), which
    trains from scratch. The backbone here is trained at a tenth of the rate, as in `joint`, whose
    data it shares.
    """
    return _transfusion(Qwen2_5VLBackboneConfig.published_4b(), RELEASED_4B)


def lmfusion_4b() -> RunConfig:
    """LMFusion: image layers beside the text layers, which they start as copies of; text frozen.

    blip3o train blip3o_4b.lmfusion --out runs/blip3o_4b/lmfusion

    Hardware: 32 GPUs of 80 GB. Hours: about 18, estimated at 40 % MFU; not run yet.
    Source: rate, warm-up and betas of the paper (arXiv 2412.15188). Without the second entry of
    `init`, the image layers start from fresh weights.
    """
    return _lmfusion(Qwen2_5VLBackboneConfig.published_4b(), RELEASED_4B)


def regression_8b() -> RunConfig:
    """CLIP + MSE: query tokens and one linear map to the image features; backbone frozen.

    blip3o train blip3o_8b.regression --out runs/blip3o_8b/regression

    Hardware: 32 GPUs of 80 GB. Hours: about 21, estimated at 40 % MFU; not run yet.
    Source: as for the 4B model.
    """
    return _regression(Qwen2_5VLBackboneConfig.published_8b(), RELEASED_8B, num_layers=0)


def regression_deep_8b() -> RunConfig:
    """CLIP + MSE with a head of as many parameters as the DiT: nine bidirectional layers.

    blip3o train blip3o_8b.regression_deep --out runs/blip3o_8b/regression_deep

    Hardware: 32 GPUs of 80 GB. Hours: about 22, estimated at 40 % MFU; not run yet.
    Source: as for the 4B model.
    """
    return _regression(Qwen2_5VLBackboneConfig.published_8b(), RELEASED_8B, num_layers=_DEEP_8B)


def transfusion_8b() -> RunConfig:
    """Transfusion: the backbone's own layers draw; trained on captions and conversations.

    blip3o train blip3o_8b.transfusion --out runs/blip3o_8b/transfusion

    Hardware: 32 GPUs of 80 GB. Hours: about 70, estimated at 40 % MFU; not run yet.
    Source: as for the 4B model.
    """
    return _transfusion(Qwen2_5VLBackboneConfig.published_8b(), RELEASED_8B)


def lmfusion_8b() -> RunConfig:
    """LMFusion: image layers beside the text layers, which they start as copies of; text frozen.

    blip3o train blip3o_8b.lmfusion --out runs/blip3o_8b/lmfusion

    Hardware: 32 GPUs of 80 GB. Hours: about 23, estimated at 40 % MFU; not run yet.
    Source: as for the 4B model.
    """
    return _lmfusion(Qwen2_5VLBackboneConfig.published_8b(), RELEASED_8B)


def _regression(backbone: Qwen2_5VLBackboneConfig, released: str, num_layers: int) -> RunConfig:
    """Returns the generation stage with a regression head of some layers instead of the DiT."""
    base = _with(
        generation(backbone, released),
        RegressionConfig(num_layers=num_layers, num_heads=backbone.num_heads),
        guidance_scale=1.0,
    )
    return dataclasses.replace(base, objectives=(FeatureRegressionConfig(),))


def _transfusion(backbone: Qwen2_5VLBackboneConfig, released: str) -> RunConfig:
    """Returns joint training in which the backbone itself draws."""
    separate = generation(backbone, released)
    base = _with(joint(backbone, released), TransfusionConfig())
    optimizer = dataclasses.replace(
        base.train.optimizer,
        lr=3e-4,
        min_lr=1.5e-5,
        warmup_steps=_WARMUP_STEPS,
        weight_decay=0.1,
        betas=_BETAS,
    )
    return dataclasses.replace(
        base,
        init=separate.init,
        objectives=(dataclasses.replace(image_loss(), weight=5.0), text_loss()),
        train=dataclasses.replace(base.train, steps=separate.train.steps, optimizer=optimizer),
    )


def _lmfusion(backbone: Qwen2_5VLBackboneConfig, released: str) -> RunConfig:
    """Returns the generation stage with image layers, copied from the text layers, as generator."""
    base = _with(generation(backbone, released), LMFusionConfig())
    copies = InitConfig(
        folder=released,
        parts=("generator.decoder",),
        sources={"generator.decoder": "backbone.decoder"},
    )
    optimizer = dataclasses.replace(base.train.optimizer, warmup_steps=_WARMUP_STEPS, betas=_BETAS)
    return dataclasses.replace(
        base,
        init=(*base.init, copies),
        train=dataclasses.replace(base.train, optimizer=optimizer),
    )


def _with(
    run: RunConfig, generator: GeneratorConfig, guidance_scale: float | None = None
) -> RunConfig:
    """Returns a run with another generator, and another default of the guidance if one is given."""
    sampling = run.model.sampling
    if guidance_scale is not None:
        sampling = dataclasses.replace(sampling, guidance_scale=guidance_scale)
    return dataclasses.replace(
        run, model=dataclasses.replace(run.model, generator=generator, sampling=sampling)
    )
