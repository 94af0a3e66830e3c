"""Rewards of reward tuning: each judges the images that a model draws while it is trained.

Each has one file here and one line in the table. `blip3o.eval.rewards` serves the scorers of
benchmarks over HTTP; the reward `http` asks such a server.
"""

from blip3o.core.registry import Registry
from blip3o.objectives.policy import RewardConfig

REWARDS: Registry[type[RewardConfig]] = Registry(
    "reward",
    {"http": ".http:HttpRewardConfig", "scenes": ".scenes:ScenesRewardConfig"},
    package=__name__,
)
