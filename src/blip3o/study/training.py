"""Sequential and joint training of the same generators, and mixes of questions and images."""

from blip3o.recipes import pocket_methods as methods
from blip3o.study.claims import Claim, Test
from blip3o.study.grid import Study
from blip3o.study.pocket_arms import SETTINGS, arm
from blip3o.train.config import RunConfig

FEW, MANY = 0.1, 0.6
"""Shares of questions of the two mixes beside the recipe's own."""


def training() -> Study:
    """Sequential training, joint training, and mixes of questions and images."""
    return Study(
        name="training",
        title="Sequential and joint training",
        arms=(
            arm("sequential", "sequential", methods.clip_flow),
            arm("joint", "joint", methods.clip_flow_joint),
            arm("joint_few", f"joint, {FEW:.0%} questions", _few),
            arm("joint_many", f"joint, {MANY:.0%} questions", _many),
            arm(
                "joint_fast",
                "joint, full rate of the backbone",
                methods.clip_flow_joint,
                train__optimizer__lr_multipliers={"backbone": 1.0},
            ),
            arm("transfusion_joint", "Transfusion, joint", methods.transfusion_joint),
            arm("lmfusion_joint", "LMFusion, joint", methods.lmfusion_joint),
        ),
        settings=SETTINGS,
        claims=(
            Claim(
                name="C5",
                text="Sequential training keeps understanding, and joint training changes it.",
                held_if=(
                    Test(score="questions_change", arm="sequential", is_="within", over="range"),
                    Test(score="questions_change", arm="joint", is_="beyond"),
                ),
                refuted_if=(Test(score="questions_change", arm="joint", is_="within", limit=0.02),),
            ),
            Claim(
                name="C6",
                text="The scores of joint training depend on the mix of questions and images.",
                held_if=(
                    Test(score="scenes", arm="joint_few", minus="joint_many", is_="above"),
                    Test(score="questions", arm="joint_few", minus="joint_many", is_="below"),
                ),
                refuted_if=(
                    Test(
                        score="scenes",
                        arm="joint_few",
                        minus="joint_many",
                        is_="within",
                        limit=0.03,
                    ),
                    Test(
                        score="questions",
                        arm="joint_few",
                        minus="joint_many",
                        is_="within",
                        limit=0.03,
                    ),
                ),
            ),
            Claim(
                name="P1",
                text="At this size, joint training follows prompts better than sequential.",
                held_if=(Test(score="scenes", arm="joint", minus="sequential", is_="above"),),
                refuted_if=(Test(score="scenes", arm="joint", minus="sequential", is_="below"),),
            ),
        ),
    )


def _few() -> RunConfig:
    return methods.joint(methods.clip_flow(), FEW)


def _many() -> RunConfig:
    return methods.joint(methods.clip_flow(), MANY)
