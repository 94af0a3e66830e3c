"""The study of the paper: ways to generate an image, on the same data."""

from blip3o.eval.scenes import ScenesBenchmark
from blip3o.recipes import pocket_methods as methods
from blip3o.recipes.pocket_parts import SMALL_WORLD
from blip3o.study.claims import Check, Claim
from blip3o.study.grid import Arm, Evaluation, Study, StudySettings

EVALUATION = Evaluation(
    benchmark=ScenesBenchmark(
        prompts_per_category=16,
        images_per_prompt=2,
        num_questions=200,
        num_captions=0,
        num_edits=0,
        num_reconstructions=0,
        world=SMALL_WORLD,
    ),
    sample_prompts=methods.PROMPTS,
)


def paper() -> Study:
    """The methods of the paper and their relatives, at equal samples.

    Hardware: two CPU cores.
    """
    return Study(
        name="paper",
        title="Ways to generate an image",
        arms=(
            Arm(name="clip_mse", title="CLIP + MSE", config=methods.clip_mse),
            Arm(name="clip_mse_deep", title="CLIP + MSE, deep head", config=methods.clip_mse_deep),
            Arm(name="clip_flow", title="CLIP + flow matching", config=methods.clip_flow),
            Arm(name="transfusion", title="Transfusion", config=methods.transfusion),
            Arm(name="lmfusion", title="LMFusion", config=methods.lmfusion),
        ),
        settings=StudySettings(evaluation=EVALUATION),
        claims=(
            Claim(
                name="C2",
                text="CLIP + flow matching follows prompts better than CLIP + MSE.",
                held_if=(
                    Check(score="scenes", arm="clip_flow", minus="clip_mse", is_="above"),
                    Check(score="scenes", arm="clip_flow", minus="clip_mse_deep", is_="above"),
                ),
                refuted_if=(
                    Check(score="scenes", arm="clip_flow", minus="clip_mse_deep", is_="below"),
                ),
            ),
            Claim(
                name="C3",
                text="CLIP + MSE has no diversity: less than half of that of the data.",
                held_if=(
                    Check(score="feature_diversity", arm="clip_mse", is_="below", limit=0.5),
                    Check(score="image_diversity", arm="clip_mse", is_="below", limit=0.5),
                ),
                refuted_if=(
                    Check(score="feature_diversity", arm="clip_mse", is_="above", limit=0.5),
                    Check(score="image_diversity", arm="clip_mse", is_="above", limit=0.5),
                ),
            ),
            Claim(
                name="C7",
                text="LMFusion keeps the text logits exactly, Transfusion does not.",
                held_if=(
                    Check(score="text_change", arm="lmfusion", is_="within", over="range"),
                    Check(score="text_change", arm="transfusion", is_="above", over="range"),
                ),
                refuted_if=(Check(score="text_change", arm="lmfusion", is_="above", over="range"),),
            ),
            Claim(
                name="C8",
                text="LMFusion reaches the images of Transfusion at half of its operations.",
                held_if=(
                    Check(
                        score="scenes",
                        arm="lmfusion",
                        minus="transfusion",
                        is_="above",
                        limit=-0.02,
                        flops_share=0.5,
                    ),
                ),
                refuted_if=(
                    Check(
                        score="scenes",
                        arm="lmfusion",
                        minus="transfusion",
                        is_="below",
                        flops_share=1.0,
                    ),
                ),
            ),
        ),
    )
