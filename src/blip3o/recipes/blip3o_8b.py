"""Recipes of the released 8B model: published numbers, and two stages of ours beside them.

Start weights come from the released model on the hub; data sets lie in data/NAME/*.tar.
"""

from pathlib import Path

from blip3o.models.backbones.qwen2_5_vl import Qwen2_5VLBackboneConfig
from blip3o.recipes import qwen2_5_vl as stages
from blip3o.train.config import RunConfig

RELEASED = "BLIP3o/BLIP3o-Model-8B"
RUNS = Path("runs/blip3o_8b")
"""Where a stage looks for the stage before it."""


def generation() -> RunConfig:
    """Published stage 2: query tokens and DiT from scratch on 36 M captions, backbone frozen.

    blip3o train blip3o_8b.generation --out runs/blip3o_8b/generation

    Hardware: 32 GPUs of 80 GB or more (16 images on each). Hours: the authors took about 340 on
    32 H200; ours is not run yet. Features are computed online; cached (data.feature_cache=DIR) they
    save most of a step and take 229 kB an image, 8.3 TB for all.
    Source: the released pre-training script (1e-4 to 1e-5, batch 512) and its documentation
    (150 k steps or more).
    """
    return stages.generation(Qwen2_5VLBackboneConfig.published_8b(), RELEASED)


def tune() -> RunConfig:
    """Published tuning of the generation stage on BLIP3o-60k, features cached.

    blip3o train blip3o_8b.tune --out runs/blip3o_8b/tune

    Hardware: 8 GPUs of 80 GB. Hours: the authors say below 24 on 8 H100; ours is not run yet.
    Source: the released tuning script (1e-4 to 0, batch 128) and its documentation (10 k steps or
    more). To tune the released model instead: init.0.folder=BLIP3o/BLIP3o-Model-8B.
    """
    return stages.tune(Qwen2_5VLBackboneConfig.published_8b(), RUNS / "generation")


def understanding() -> RunConfig:
    """Tunes the backbone on conversations about images; the released models kept it frozen.

    blip3o train blip3o_8b.understanding --out runs/blip3o_8b/understanding

    Hardware: 8 GPUs of 80 GB. Hours: about 7, estimated from 2 k tokens a sample at 40 % MFU.
    Source: ours; the released models keep Qwen2.5-VL as it is.
    """
    return stages.understanding(Qwen2_5VLBackboneConfig.published_8b(), RELEASED)


def joint() -> RunConfig:
    """Captions and conversations at once, three to one, backbone trained at a tenth of the rate.

    blip3o train blip3o_8b.joint --out runs/blip3o_8b/joint

    Hardware: 32 GPUs of 80 GB. Hours: about 20, estimated at 40 % MFU, image encoder included.
    Source: the loss weights (one to one) are those of the Qwen3-SigLIP2 variant; the rest is ours.
    """
    return stages.joint(Qwen2_5VLBackboneConfig.published_8b(), RELEASED)
