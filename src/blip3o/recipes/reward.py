"""Reward tuning: a stage after instruction tuning, and the recipes of the released models.

The mixture holds prompts to draw for (task `rollout`) beside rows of the stage before, whose
losses keep its skills. Numbers come from the papers of the objectives where they state them.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from blip3o.data.mixture import MixtureEntry
from blip3o.data.sources.jsonl import JsonlConfig
from blip3o.eval.tuning.http import HttpRewardConfig
from blip3o.objectives.diffusion_nft import DiffusionNftConfig
from blip3o.objectives.policy import PolicyConfig
from blip3o.recipes.qwen2_5_vl import tune_4b, tune_8b
from blip3o.recipes.stages import DATA, train_config
from blip3o.train.config import InitConfig, LoraConfig, RunConfig, TrainConfig

OLD_POLICY_DECAY = 0.9
"""Decay of the averaged weights, which draw the images and which the final model gets."""
_PROMPTS = 48
_OTHERS = 16
"""Prompts of a step (published for DiffusionNFT) and rows of the tuning data beside them."""


def reward_of(
    run: RunConfig,
    objective: PolicyConfig,
    prompts: Sequence[MixtureEntry],
    train: TrainConfig,
    *,
    folder: str,
    share: float,
    keeps: Sequence[str] = ("text_to_image", "edit", "reconstruct"),
) -> RunConfig:
    """Returns the reward tuning of a stage's model, with rows of that stage beside the rollouts.

    Args:
        run: the stage before.
        objective: the objective with its reward.
        prompts: data of the task `rollout`; their weights are relative to each other.
        train: trained parts, steps and batch size. Its `ema_decay` becomes that of the old policy.
        folder: the model to start from.
        share: share of the prompts among all rows, in (0, 1).
        keeps: tasks of the stage before whose rows and losses stay. With a frozen backbone, those
            of text would train nothing, and cannot be forgotten.
    """
    kept = [one for one in run.data.mixture if one.task in keeps]
    mixture = (*_scaled(prompts, share), *_scaled(kept, 1 - share))
    losses = [one for one in run.objectives if {*one.tasks} & {*keeps}]
    return dataclasses.replace(
        run,
        init=(InitConfig(folder=folder),),
        data=dataclasses.replace(run.data, mixture=mixture),
        objectives=(objective, *losses),
        train=dataclasses.replace(train, ema_decay=OLD_POLICY_DECAY),
    )


def reward_4b() -> RunConfig:
    """Tunes the 4B model by rewards of a GenEval server, with DiffusionNFT on low-rank adapters.

    blip3o train blip3o_4b.reward --out runs/blip3o_4b/reward

    Needs a reward server: blip3o eval serve-rewards --benchmark geneval clip=FOLDER
    (docs/rewards.md), and prompts of your own in data/reward/prompts.jsonl, one object in each
    line: prompt, and item with what the server needs. Do not use the published prompts.
    Hardware: 8 GPUs of 80 GB, and one for the server. Hours: not measured; a step draws 1152
    images. Source: DiffusionNFT (arXiv 2509.16117) for 48 prompts with 24 images, 10 steps, the
    adapters and the rate; guidance and the tuning data beside the prompts are ours.
    """
    return _reward(tune_4b(), Path("runs/blip3o_4b/tune"))


def reward_8b() -> RunConfig:
    """Tunes the 8B model by rewards of a GenEval server, with DiffusionNFT on low-rank adapters.

    blip3o train blip3o_8b.reward --out runs/blip3o_8b/reward

    Hardware: 8 GPUs of 80 GB, and one for the server. Hours: not measured. Source: as for the 4B
    model, and so are server and prompts.
    """
    return _reward(tune_8b(), Path("runs/blip3o_8b/tune"))


def _reward(tune: RunConfig, before: Path) -> RunConfig:
    objective = DiffusionNftConfig(
        reward=HttpRewardConfig(url="http://127.0.0.1:8100"),
        num_images=24,
        num_inference_steps=10,
    )
    source = JsonlConfig(path=f"{DATA}/reward/prompts.jsonl", name="prompts")
    rows = _PROMPTS + _OTHERS
    train = dataclasses.replace(
        train_config("generator", steps=1000, batch=rows, lr=3e-4),
        micro_batch_size=1,  # of a prompt: 24 images with two noise levels each
        adapter=LoraConfig(rank=32, alpha=64.0),
        checkpoint_every=50,
        sample_every=50,
        log_every=1,
    )
    return reward_of(
        tune,
        objective,
        (MixtureEntry(source=source, task="rollout"),),
        train,
        folder=str(before),
        share=_PROMPTS / rows,
    )


def _scaled(entries: Sequence[MixtureEntry], share: float) -> list[MixtureEntry]:
    """Returns the entries with weights that add up to a share."""
    total = sum(one.weight for one in entries)
    return [dataclasses.replace(one, weight=one.weight * share / total) for one in entries]
