"""The study of training: sequential against joint, and the mixes of joint training."""

from blip3o.recipes import pocket_methods as methods
from blip3o.study.claims import Check, Claim
from blip3o.study.grid import Arm, Study, StudySettings
from blip3o.study.paper import EVALUATION
from blip3o.train.config import RunConfig

_FEW, _MANY = 0.1, 0.5
"""Shares of questions that differ from that of the recipe."""
_NOISE = 0.02
"""Smallest change of a share of right answers that counts."""


def training() -> Study:
    """Sequential and joint training of the paper's method, at equal samples.

    Hardware: two CPU cores.
    """
    return Study(
        name="training",
        title="Sequential and joint training",
        arms=(
            Arm(name="sequential", title="sequential", config=methods.clip_flow),
            Arm(name="joint_few", title="joint, 10 % questions", config=_few_questions),
            Arm(name="joint", title="joint, 25 % questions", config=methods.clip_flow_joint),
            Arm(name="joint_many", title="joint, 50 % questions", config=_many_questions),
        ),
        settings=StudySettings(evaluation=EVALUATION),
        claims=(
            Claim(
                name="C5",
                text="Sequential training keeps the understanding, joint training changes it.",
                held_if=(
                    Check(score="questions_change", arm="sequential", is_="within", limit=_NOISE),
                    Check(score="questions_change", arm="joint", is_="beyond"),
                ),
                refuted_if=(
                    Check(score="questions_change", arm="joint", is_="within", limit=_NOISE),
                ),
            ),
            Claim(
                name="C6",
                text="Joint training needs a balanced mix: each half suffers with a small share.",
                held_if=(
                    Check(score="scenes", arm="joint_few", minus="joint_many", is_="above"),
                    Check(score="questions", arm="joint_many", minus="joint_few", is_="above"),
                ),
                refuted_if=(
                    Check(
                        score="scenes",
                        arm="joint_few",
                        minus="joint_many",
                        is_="within",
                        limit=_NOISE,
                    ),
                    Check(
                        score="questions",
                        arm="joint_many",
                        minus="joint_few",
                        is_="within",
                        limit=_NOISE,
                    ),
                ),
            ),
        ),
    )


def _few_questions() -> RunConfig:
    return methods.joint(methods.clip_flow(), _FEW)


def _many_questions() -> RunConfig:
    return methods.joint(methods.clip_flow(), _MANY)
