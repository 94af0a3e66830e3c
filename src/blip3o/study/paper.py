"""The paper's comparison of methods: MSE or flow, CLIP or VAE, and the two fusions."""

from blip3o.recipes import pocket_methods as methods
from blip3o.recipes import pocket_vae
from blip3o.study.claims import Claim, Test
from blip3o.study.grid import Arm, Study
from blip3o.study.small_world import SETTINGS


def paper() -> Study:
    """The methods of the paper, trained sequentially: the backbone first, then the generator."""
    return Study(
        name="paper",
        title="Methods of generation, trained sequentially",
        arms=(
            Arm(name="clip_mse", title="CLIP + MSE, linear head", config=methods.clip_mse),
            Arm(name="clip_mse_deep", title="CLIP + MSE, deep head", config=methods.clip_mse_deep),
            Arm(name="clip_flow", title="CLIP + flow matching", config=methods.clip_flow),
            Arm(name="vae_flow", title="VAE + flow matching", config=pocket_vae.flow),
            Arm(name="transfusion", title="Transfusion", config=methods.transfusion),
            Arm(name="lmfusion", title="LMFusion", config=methods.lmfusion),
            Arm(
                name="clip_flow_closed",
                title="CLIP + flow matching, closed gates",
                config=methods.clip_flow,
                overrides={"model.generator.fresh_gates": "closed"},
            ),
            Arm(
                name="lmfusion_copied",
                title="LMFusion, copied layers",
                config=methods.lmfusion_copied,
            ),
        ),
        settings=SETTINGS,
        shared={"vae": lambda shared: pocket_vae.vae()},
        claims=(
            Claim(
                name="C1",
                text="CLIP + flow matching follows prompts better than VAE + flow matching.",
                held_if=(_more("scenes", "clip_flow", "vae_flow"),),
                refuted_if=(_more("scenes", "vae_flow", "clip_flow"),),
            ),
            Claim(
                name="C2",
                text="CLIP + flow matching follows prompts better than CLIP + MSE.",
                held_if=(
                    _more("scenes", "clip_flow", "clip_mse"),
                    _more("scenes", "clip_flow", "clip_mse_deep"),
                ),
                refuted_if=(_more("scenes", "clip_mse", "clip_flow"),),
            ),
            Claim(
                name="C3",
                text="CLIP + MSE has no diversity.",
                held_if=(
                    Test(score="feature_diversity", arm="clip_mse", is_="below", limit=0.01),
                    Test(score="image_diversity", arm="clip_mse", is_="below", limit=0.5),
                ),
                refuted_if=(Test(score="image_diversity", arm="clip_mse", is_="above", limit=0.5),),
            ),
            Claim(
                name="C4",
                text="VAE + flow matching gives better pixels than CLIP + flow matching.",
                held_if=(
                    _more("psnr", "vae_flow", "clip_flow"),
                    _more("frechet", "clip_flow", "vae_flow"),
                ),
                refuted_if=(
                    _more("psnr", "clip_flow", "vae_flow"),
                    _more("frechet", "vae_flow", "clip_flow"),
                ),
            ),
            Claim(
                name="C7",
                text="LMFusion keeps the text model exactly, and Transfusion does not.",
                held_if=(
                    Test(score="text_change", arm="lmfusion", is_="within", over="range"),
                    Test(
                        score="text_change", arm="transfusion", is_="above", limit=0.1, over="range"
                    ),
                ),
                refuted_if=(Test(score="text_change", arm="lmfusion", is_="above", over="range"),),
            ),
            Claim(
                name="C8",
                text=(
                    "LMFusion reaches the images of Transfusion (less 0.05 of the score) at half "
                    "of its operations."
                ),
                held_if=(
                    Test(
                        score="scenes",
                        arm="lmfusion",
                        minus="transfusion",
                        is_="above",
                        limit=-0.05,
                        flops_share=0.5,
                    ),
                ),
                refuted_if=(
                    Test(
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


def _more(score: str, one: str, other: str) -> Test:
    return Test(score=score, arm=one, minus=other, is_="above")
