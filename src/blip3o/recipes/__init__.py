"""L6: recipes: documented functions that return a complete `RunConfig`. Numbers only, no logic."""

from pathlib import Path

from blip3o.core.describe import describe_functions
from blip3o.core.registry import Registry

RECIPES = Registry(
    "recipe",
    {
        "pocket.encoder": ".pocket:encoder",
        "pocket.decoder": ".pocket:decoder",
        "pocket.names": ".pocket:names",
        "pocket.understanding": ".pocket:understanding",
        "pocket.generation": ".pocket:generation",
        "pocket.query_dit": ".pocket:query_dit",
        "pocket.tune": ".pocket:tune",
        "pocket.refine": ".pocket:refine",
        "pocket.reward": ".pocket:reward",
        "pocket.finish": ".pocket:finish",
        "pocket.clip_mse": ".pocket_methods:clip_mse",
        "pocket.clip_mse_deep": ".pocket_methods:clip_mse_deep",
        "pocket.clip_flow": ".pocket_methods:clip_flow",
        "pocket.transfusion": ".pocket_methods:transfusion",
        "pocket.lmfusion": ".pocket_methods:lmfusion",
        "pocket.lmfusion_copied": ".pocket_methods:lmfusion_copied",
        "pocket.clip_mse_joint": ".pocket_methods:clip_mse_joint",
        "pocket.clip_flow_joint": ".pocket_methods:clip_flow_joint",
        "pocket.transfusion_joint": ".pocket_methods:transfusion_joint",
        "pocket.lmfusion_joint": ".pocket_methods:lmfusion_joint",
        "pocket.vae": ".pocket_vae:vae",
        "pocket.vae_flow": ".pocket_vae:flow",
        "pocket.vae_flow_joint": ".pocket_vae:flow_joint",
        "pocket.all": ".pocket:all_stages",
        "pocket.smoke": ".pocket:smoke",
        "decoder.sana": ".decoders:sana",
        "decoder.sdxl": ".decoders:sdxl",
        "own_data": ".own_data:pocket",
        "blip3o_4b.generation": ".qwen2_5_vl:generation_4b",
        "blip3o_4b.vae_flow": ".qwen2_5_vl:vae_flow_4b",
        "blip3o_4b.tune": ".qwen2_5_vl:tune_4b",
        "blip3o_4b.reward": ".reward:reward_4b",
        "blip3o_4b.understanding": ".qwen2_5_vl:understanding_4b",
        "blip3o_4b.joint": ".qwen2_5_vl:joint_4b",
        "blip3o_4b.regression": ".qwen2_5_vl_methods:regression_4b",
        "blip3o_4b.regression_deep": ".qwen2_5_vl_methods:regression_deep_4b",
        "blip3o_4b.transfusion": ".qwen2_5_vl_methods:transfusion_4b",
        "blip3o_4b.lmfusion": ".qwen2_5_vl_methods:lmfusion_4b",
        "blip3o_4b.own_data": ".own_data:blip3o_4b",
        "blip3o_8b.generation": ".qwen2_5_vl:generation_8b",
        "blip3o_8b.vae_flow": ".qwen2_5_vl:vae_flow_8b",
        "blip3o_8b.tune": ".qwen2_5_vl:tune_8b",
        "blip3o_8b.reward": ".reward:reward_8b",
        "blip3o_8b.understanding": ".qwen2_5_vl:understanding_8b",
        "blip3o_8b.joint": ".qwen2_5_vl:joint_8b",
        "blip3o_8b.regression": ".qwen2_5_vl_methods:regression_8b",
        "blip3o_8b.regression_deep": ".qwen2_5_vl_methods:regression_deep_8b",
        "blip3o_8b.transfusion": ".qwen2_5_vl_methods:transfusion_8b",
        "blip3o_8b.lmfusion": ".qwen2_5_vl_methods:lmfusion_8b",
        "blip3o_8b.own_data": ".own_data:blip3o_8b",
        "qwen3_siglip2.understanding": ".qwen3_siglip2:understanding",
        "qwen3_siglip2.generation": ".qwen3_siglip2:generation",
        "qwen3_siglip2.joint": ".qwen3_siglip2:joint",
    },
    package=__name__,
)


def describe_recipes() -> str:
    """Returns one line per recipe: its name and the first line of its docstring."""
    return describe_functions(RECIPES, Path(__file__).parent)
