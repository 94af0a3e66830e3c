"""Every recipe at full size without memory, and for real at the smallest size of its parts."""

import dataclasses
import json
import math
from fnmatch import fnmatch
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from blip3o.core.config import evolve
from blip3o.data.mixture import MixtureEntry
from blip3o.data.sources.folder import FolderConfig
from blip3o.data.sources.jsonl import JsonlConfig
from blip3o.eval.tuning.http import HttpReward
from blip3o.flow.sigmas import DiscreteUniformSigmas
from blip3o.models.autoencoders import (
    AutoencoderConfig,
    DcAutoencoderConfig,
    KlAutoencoderConfig,
)
from blip3o.models.backbones import BACKBONES
from blip3o.models.backbones.qwen2_5_vl import Qwen2_5VLBackboneConfig
from blip3o.models.decoders import DECODERS
from blip3o.models.dit.nextdit import NextDiT, NextDiTConfig
from blip3o.models.encoders.eva_clip import EvaClipEncoderConfig
from blip3o.models.encoders.vae import VaeEncoderConfig
from blip3o.models.generators import GENERATORS
from blip3o.models.generators.plan import Generator
from blip3o.models.generators.query_dit import QueryDiTConfig
from blip3o.models.unified import UnifiedModel, UnifiedModelConfig
from blip3o.objectives.policy import PolicyConfig
from blip3o.recipes import RECIPES, pocket, qwen2_5_vl
from blip3o.runs import assemble
from blip3o.runs.scenes import _OWN
from blip3o.runs.start import load_recipe, train
from blip3o.text.chat import ChatConfig
from blip3o.train.config import RunConfig
from blip3o.train.optimizer import build_optimizer, is_under, learning_rate, select_trainable

IMAGE_PAD_ID = 6  # of tokenizers that a run trains itself
OWN = [name for name in RECIPES.names() if not name.startswith("pocket.")]

AT_TINY_SIZE = [  # both sizes of the released model are equal there
    pytest.param(name, marks=pytest.mark.slow) if name.startswith("blip3o_8b.") else name
    for name in OWN
]


each_size = pytest.mark.parametrize(("size", "width"), [("4b", 2048), ("8b", 3584)])


def recipe(name: str) -> RunConfig:
    config = load_recipe(name, Path("runs") / name)
    assert isinstance(config, RunConfig)
    return config


_SKETCHES: dict[str, UnifiedModel] = {}


def sketch(config: UnifiedModelConfig) -> UnifiedModel:
    """Returns the model without memory; recipes with equal models share it."""
    key = repr(config)
    if key not in _SKETCHES:
        with torch.device("meta"):
            _SKETCHES[key] = config.build()
    return _SKETCHES[key]


@pytest.mark.parametrize("name", OWN)
def test_a_recipe_builds_at_full_size(name: str) -> None:
    pytest.importorskip("diffusers")
    config = recipe(name)
    model = sketch(config.model)
    with torch.device("meta"):
        objectives = torch.nn.ModuleList(o.build(config.model) for o in config.objectives)
    chosen = select_trainable(model, objectives, config.train.trainable)
    build_optimizer(chosen, config.train.optimizer)
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    for init in config.init:
        for part in init.parts:
            source = init.sources.get(part, part)
            wanted = {k: v for k, v in shapes.items() if k.startswith(f"{part}.")}
            assert wanted, part
            for key, shape in wanted.items():
                assert shapes[source + key.removeprefix(part)] == shape
    tasks = {entry.task for entry in config.data.mixture}
    assert tasks <= {task for objective in config.objectives for task in objective.tasks}


@pytest.mark.parametrize("name", OWN)
def test_a_recipe_documents_command_hardware_hours_and_source(name: str) -> None:
    text = RECIPES.get(name).__doc__ or ""
    assert f"blip3o train {name} --out runs/" in text
    for word in ("Hardware: ", "Hours: ", "Source: "):
        assert word in text, f"{name} does not state {word}"


@each_size
def test_the_published_numbers(size: str, width: int) -> None:
    """The released scripts and their documentation: steps, batches, rates, dropout, clipping."""
    generation, tune = recipe(f"blip3o_{size}.generation"), recipe(f"blip3o_{size}.tune")
    assert isinstance(generation.model.generator, QueryDiTConfig)
    assert generation.model.generator.dit(generation.model.joints) == NextDiTConfig.published(width)
    assert generation.train.steps >= 150_000
    assert generation.train.global_batch_size == 512
    assert (generation.train.optimizer.lr, generation.train.optimizer.min_lr) == (1e-4, 1e-5)
    assert tune.train.steps >= 10_000
    assert tune.train.global_batch_size == 128
    assert (tune.train.optimizer.lr, tune.train.optimizer.min_lr) == (1e-4, 0.0)
    for config in (generation, tune):
        train_config, optimizer = config.train, config.train.optimizer
        assert train_config.trainable == ("generator",)
        assert math.isclose(optimizer.warmup_steps, 0.003 * train_config.steps)
        assert (optimizer.weight_decay, optimizer.betas) == (0.0, (0.9, 0.999))
        assert (train_config.grad_clip, train_config.ema_decay) == (1.0, 0.0)
        (objective,) = config.objectives
        assert objective.condition_dropout == 0.1
        assert objective.sigmas == DiscreteUniformSigmas()  # as tests/parity have recorded it


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def generator_of(name: str) -> Generator:
    config = recipe(name).model
    with torch.device("meta"):
        return config.generator.build(config.joints)


@each_size
def test_image_layers_have_the_shape_of_the_text_layers(size: str, width: int) -> None:
    config = recipe(f"blip3o_{size}.lmfusion").model
    sizes = config.backbone
    assert isinstance(sizes, Qwen2_5VLBackboneConfig)
    rows = (1 + 2 * sizes.num_kv_heads / sizes.num_heads) * width  # of queries, keys and values
    attention = rows * (width + 1) + width * width
    layer = attention + 3 * width * sizes.intermediate_size + 2 * width  # MLP and two norms
    layers = sizes.num_layers * layer + width  # the final norm
    generator, ends = (
        generator_of(f"blip3o_{size}.lmfusion"),
        generator_of(f"blip3o_{size}.transfusion"),
    )
    assert count(generator) == layers + count(ends)


@pytest.mark.parametrize(
    ("deep", "flow"),
    [
        ("blip3o_4b.regression_deep", "blip3o_4b.generation"),
        ("blip3o_8b.regression_deep", "blip3o_8b.generation"),
        ("pocket.clip_mse_deep", "pocket.clip_flow"),
    ],
)
def test_the_deep_head_has_as_many_parameters_as_the_dit(deep: str, flow: str) -> None:
    assert math.isclose(count(generator_of(deep)), count(generator_of(flow)), rel_tol=0.04)


@each_size
def test_methods_share_data_and_steps(size: str, width: int) -> None:
    del width
    generation, joint = recipe(f"blip3o_{size}.generation"), recipe(f"blip3o_{size}.joint")
    for method in ("regression", "regression_deep", "transfusion", "lmfusion"):
        config = recipe(f"blip3o_{size}.{method}")
        is_joint = method == "transfusion"
        assert config.data == (joint if is_joint else generation).data
        assert config.init[0] == generation.init[0]
        for name in ("steps", "global_batch_size"):
            assert getattr(config.train, name) == getattr(generation.train, name)
        assert config.train.trainable == (joint if is_joint else generation).train.trainable


@each_size
def test_optimizers_of_the_methods_are_those_of_their_papers(size: str, width: int) -> None:
    del width
    transfusion = recipe(f"blip3o_{size}.transfusion")
    images, _ = transfusion.objectives
    assert images.weight == 5.0
    optimizer = transfusion.train.optimizer
    assert (optimizer.lr, optimizer.min_lr, optimizer.weight_decay) == (3e-4, 1.5e-5, 0.1)
    lmfusion = recipe(f"blip3o_{size}.lmfusion").train.optimizer
    assert lmfusion.lr == 1e-4
    for one in (optimizer, lmfusion):
        assert (one.warmup_steps, one.betas) == (4000, (0.9, 0.95))


@pytest.mark.parametrize("name", ["decoder.sana", "decoder.sdxl"])
def test_a_decoder_recipe_trains_its_network_only(name: str) -> None:
    config = recipe(name)
    model = sketch(config.model)
    chosen = select_trainable(model, torch.nn.ModuleList(), config.train.trainable)
    own = {n for n, _ in model.named_parameters() if n.startswith("image_decoder.")}
    assert chosen.keys() == {n for n in own if not n.startswith("image_decoder.vae.")}
    (init,) = config.init
    loaded = {n for n in own if any(is_under(n, part) for part in init.parts)}
    assert loaded == own


def test_the_published_numbers_of_the_sana_decoder() -> None:
    """The script of the reconstruction branch: 64 tokens, rates, dropout, clipping, warm-up."""
    config = recipe("decoder.sana")
    assert config.model.feature_shape == (64, 1152)
    assert config.model.image_encoder.image_px == config.model.image_decoder.image_px == 512
    train, optimizer = config.train, config.train.optimizer
    assert (optimizer.lr, optimizer.min_lr, optimizer.warmup_steps) == (1e-4, 0.0, 5000)
    assert (optimizer.weight_decay, optimizer.betas, optimizer.eps) == (0.05, (0.9, 0.999), 1e-8)
    assert (train.global_batch_size, train.grad_clip, train.ema_decay) == (512, 0.5, 0.0)
    (objective,) = config.objectives
    assert objective.sigmas == DiscreteUniformSigmas()
    assert objective.condition_dropout == 0.1


@pytest.mark.parametrize("size", ["4b", "8b"])
@pytest.mark.parametrize(
    ("autoencoder", "image_px", "patch_size", "width"),
    [
        (None, 256, 4, 16 * 16),
        (KlAutoencoderConfig.flux(), 512, 8, 16 * 64),
        (DcAutoencoderConfig.sana(), 512, 2, 32 * 4),
    ],
)
def test_a_published_vae_gives_the_dit_as_many_tokens_as_image_features(
    size: str, autoencoder: AutoencoderConfig | None, image_px: int, patch_size: int, width: int
) -> None:
    pytest.importorskip("diffusers")
    config = recipe(f"blip3o_{size}.vae_flow").model
    features = recipe(f"blip3o_{size}.generation").model
    assert isinstance(config.backbone, Qwen2_5VLBackboneConfig)
    if autoencoder is not None:
        config = qwen2_5_vl.vae_model(
            config.backbone, autoencoder, image_px=image_px, patch_size=patch_size
        )
    model, base = sketch(config), sketch(features)
    dit, other = (cast("NextDiT", one.get_submodule("generator.dit")) for one in (model, base))
    assert config.image_encoder.num_tokens // patch_size**2 == 64
    assert features.image_encoder.num_tokens == 64
    shapes, expected = ([p.shape for p in one.layers.parameters()] for one in (dit, other))
    assert shapes == expected
    assert dit.state_dict()["patch_embedder.proj.weight"].shape[1] == width
    assert model.normalizer.is_identity  # published VAEs carry their own factors
    assert config.image_encoder.image_px == config.image_decoder.image_px == image_px


def test_qwen3_uses_the_image_placeholder_of_its_tokenizer() -> None:
    """Qwen 2.5 and 3 share all ids up to this one; the published placeholder is another token."""
    asked = recipe("qwen3_siglip2.joint").model.backbone.image_token_id
    assert asked == recipe("blip3o_4b.joint").model.backbone.image_token_id == 151_655


def tiny_model(run: RunConfig) -> UnifiedModelConfig:
    """The same kinds of backbone, encoder and generator in small sizes.

    A VAE keeps its decoder. Another run that neither trains the image decoder nor draws images has
    none.
    """
    config = run.model
    draws = any(entry.task == "rollout" for entry in run.data.mixture)
    has_decoder = any(part.startswith("image_decoder") for part in run.train.trainable)
    tiny = UnifiedModelConfig.tiny()
    backbone = BACKBONES.get(config.backbone.kind).tiny()
    tower = getattr(config.backbone, "vision_tower", None)
    if tower is not None:
        changes = {"vision_tower": type(tower).tiny(), "image_channels": None}
        backbone = dataclasses.replace(backbone, **changes)
    generator = GENERATORS.get(config.generator.kind).tiny()
    if isinstance(generator, QueryDiTConfig):
        generator = dataclasses.replace(generator, takes_reference=False)
    is_vae = isinstance(config.image_encoder, VaeEncoderConfig)
    if is_vae:
        generator = evolve(generator, {"patch_size": 4})
    return dataclasses.replace(
        config,
        backbone=dataclasses.replace(backbone, image_token_id=IMAGE_PAD_ID, max_positions=512),
        image_encoder=VaeEncoderConfig.tiny() if is_vae else EvaClipEncoderConfig.tiny(),
        normalizer=config.normalizer if is_vae else tiny.normalizer,
        generator=generator,
        image_decoder=DECODERS.get(config.image_decoder.kind).tiny()
        if has_decoder or is_vae
        else tiny.image_decoder,
        chat=ChatConfig(system=None, generate="draw: {caption}"),
        question_images=dataclasses.replace(
            config.question_images, min_pixels=16 * 16, max_pixels=32 * 32
        ),
        absent_parts=() if has_decoder or is_vae or draws else ("image_decoder",),
    )


def write_data(folder: Path) -> Path:
    """Images with captions, both as JSON lines and as text files."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(4):
        image = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))
        image.save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a red cat {number}\n")
        rows.append({"image": f"{number}.png", "caption": f"a red cat {number}"})
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def on_local_files(entry: MixtureEntry, file: Path) -> MixtureEntry:
    """The same task on local images."""
    if isinstance(entry.source, FolderConfig):
        source = dataclasses.replace(entry.source, path=str(file.parent))
    else:
        source = JsonlConfig(path=str(file), name="home")
    return dataclasses.replace(entry, source=source)


@pytest.mark.parametrize("name", AT_TINY_SIZE)
def test_a_recipe_trains(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assemble, "draw_curves", lambda run_dir: None)
    monkeypatch.setattr(HttpReward, "score", lambda self, images, requests: range(len(images)))
    config = recipe(name)
    file = write_data(tmp_path)
    model = tiny_model(config)
    cache = str(tmp_path / "features") if config.data.feature_cache else None
    config = dataclasses.replace(
        config,
        model=model,
        init=(),
        data=dataclasses.replace(
            config.data,
            mixture=tuple(on_local_files(entry, file) for entry in config.data.mixture),
            num_workers=0,
            feature_cache=cache,
        ),
        objectives=tuple(
            dataclasses.replace(one, num_images=2) if isinstance(one, PolicyConfig) else one
            for one in config.objectives
        ),
        train=dataclasses.replace(
            config.train,
            steps=2,
            global_batch_size=4,
            micro_batch_size=2,
            log_every=1,
            sample_every=0,
            precision="fp32",
            device="cpu",
        ),
    )
    train(config, tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [math.isfinite(json.loads(line)["loss"]) for line in lines] == [True, True]
    assert (tmp_path / "run" / "model" / "config.json").is_file()


def test_pocket_stages_read_the_shards_that_their_task_needs() -> None:
    stages = [*pocket.all_stages(Path("runs")).values(), pocket.smoke()]
    for entry in [entry for stage in stages for entry in stage.data.mixture]:
        folder, pattern = Path(entry.source.path).parent, Path(entry.source.path).name
        kinds = ("scenes", "edits", "pairs", "groups")
        matching = {kind for kind in kinds if fnmatch(f"{kind}-000000.tar", pattern)}
        fitting = {"edit": ["edits"], "text_to_image": ["scenes", "pairs", "groups"]}
        fitting["rollout"] = fitting["text_to_image"]
        if entry.conversation is None:  # only scenes have the other conversations
            fitting["image_to_text"] = ["scenes", "pairs", "groups"]
        assert len(matching) == 1, entry
        assert matching <= set(fitting.get(entry.task, ["scenes"])), entry
        assert str(folder) in {"runs/scenes", "runs/scenes-small"}
        (kind,) = matching
        assert getattr(_OWN[str(folder)], f"num_{kind}") > 0  # written by `ensure_scenes`


def test_finish_starts_from_a_mean_at_half_of_the_rate_that_falls_at_once() -> None:
    tune, finish = recipe("pocket.tune"), recipe("pocket.finish")
    starts = [(one.folder, one.share) for one in finish.init]
    assert starts == [("runs/pocket/tune", 1.0), ("runs/pocket/reward", 0.5)]
    assert [one.folder for one in recipe("pocket.reward").init] == ["runs/pocket/refine"]
    assert sum(one.weight for one in finish.data.mixture) == pytest.approx(1)
    optimizer, steps = finish.train.optimizer, finish.train.steps
    assert optimizer.lr == pytest.approx(tune.train.optimizer.lr / 2)
    assert not optimizer.lr_multipliers
    rates = [learning_rate(step, steps, optimizer) for step in (10, 500, 2000, 3900)]
    assert rates == sorted(rates, reverse=True)
    assert rates[1] < 0.99 * optimizer.lr
