"""Folders of the released models: loading, conversion in both directions, refusal if invalid."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from blip3o.core.errors import UsageError
from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.models.decoders.sdxl import SdxlDecoderConfig
from blip3o.models.generators.plan import Plan
from blip3o.models.prompts import Prompts
from blip3o.models.unified import UnifiedModel
from blip3o.weights import shards
from blip3o.weights.convert import convert
from blip3o.weights.folder import load_model

UNET = "diffusion-decoder/unet"
INDEX = "model.safetensors.index.json"


def tensors(folder: Path) -> dict[str, Tensor]:
    """Returns all tensors of a folder by component and name, independently of the shards."""
    return {
        f"{file.parent.relative_to(folder)}/{name}": value
        for file in folder.rglob("*.safetensors")
        for name, value in load_file(file).items()
    }


def require_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name


def draw(folder: Path) -> Tensor:
    pipe = Blip3oPipeline.from_pretrained(folder, device="cpu", dtype="fp32")
    generator = torch.Generator().manual_seed(3)
    return pipe("a red cat", generator=generator, output_type="pt").images


def edit_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def refusal(folder: Path, dest: Path) -> str:
    """Returns the one-line message with which both readers refuse the folder."""
    messages = []
    for read in (load_model, lambda source: convert(source, dest)):
        with pytest.raises(UsageError) as caught:
            read(folder)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert "\n" not in messages[0]
    assert not list(dest.parent.glob(f"*{dest.name}*"))
    return messages[0]


@pytest.fixture(params=[None, 40_000], ids=["one file", "shards"])
def max_shard_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int | None:
    if request.param is not None:
        monkeypatch.setattr(shards, "MAX_SHARD_BYTES", request.param)
    return request.param


def test_a_published_folder_loads_without_conversion(
    released_folder: Path, released_model: UnifiedModel
) -> None:
    loaded = load_model(released_folder, dtype=torch.bfloat16)
    expected = released_model.config
    found = loaded.model.config
    assert isinstance(found.image_decoder, SdxlDecoderConfig)
    assert isinstance(expected.image_decoder, SdxlDecoderConfig)
    assert found.image_decoder.autoencoder == expected.image_decoder.autoencoder
    for part in ("backbone", "image_encoder", "generator", "sampling", "chat"):
        assert getattr(found, part) == getattr(expected, part)
    require_same(loaded.model.state_dict(), released_model.state_dict())
    assert not any(
        p.requires_grad for p in loaded.model.get_submodule("image_decoder.vae").parameters()
    )
    assert loaded.model.get_parameter("generator.query_tokens.weight").requires_grad


def test_conversion_in_both_directions_is_bit_equal(
    released_folder: Path, tmp_path: Path, max_shard_bytes: int | None
) -> None:
    ours, again, ours_again = (tmp_path / name for name in ("ours", "again", "ours_again"))
    convert(released_folder, ours)
    convert(ours, again, to="published")
    convert(again, ours_again)
    require_same(tensors(again), tensors(released_folder))
    require_same(tensors(ours_again), tensors(ours))
    assert (ours_again / "config.json").read_text() == (ours / "config.json").read_text()
    assert (ours / INDEX).exists() == (max_shard_bytes is not None)
    sizes = [sum(t.nbytes for t in load_file(f).values()) for f in ours.glob("model*.safetensors")]
    assert max_shard_bytes is None or max(sizes) <= max_shard_bytes


def test_a_published_folder_and_the_converted_one_draw_equal_images(
    released_folder: Path, tmp_path: Path
) -> None:
    convert(released_folder, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "again", to="published")
    images = [draw(folder) for folder in (released_folder, tmp_path / "ours", tmp_path / "again")]
    assert bool(images[0].isfinite().all())
    assert torch.equal(images[0], images[1])
    assert torch.equal(images[0], images[2])


def test_a_stored_empty_condition_is_used_and_kept(released_folder: Path, tmp_path: Path) -> None:
    convert(released_folder, tmp_path / "ours")
    made = draw(tmp_path / "ours")
    file = tmp_path / "ours/image_decoder/model.safetensors"
    state = load_file(file)
    assert not state["empty_features"].any()
    state["empty_features"].fill_(0.5)
    save_file(state, file)
    stored = draw(tmp_path / "ours")
    assert not torch.equal(made, stored)
    convert(tmp_path / "ours", tmp_path / "published", to="published")
    assert torch.equal(draw(tmp_path / "published"), stored)
    convert(tmp_path / "published", tmp_path / "ours_again")
    require_same(tensors(tmp_path / "ours_again"), tensors(tmp_path / "ours"))


def test_the_empty_condition_is_computed_from_the_empty_prompt(
    released_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = Blip3oPipeline.from_pretrained(released_folder, device="cpu", dtype="fp32")
    rows: list[list[int]] = []
    plan = pipe.model.plan

    def spy(prompts: Prompts) -> Plan:
        rows.extend(prompts.input_ids.tolist())
        return plan(prompts)

    monkeypatch.setattr(pipe.model, "plan", spy)
    seen: list[Tensor] = []
    decode = pipe.model.image_decoder.decode

    def watch(*args: Any, **options: Any) -> Tensor:
        seen.append(options["empty_features"])
        return decode(*args, **options)

    monkeypatch.setattr(pipe.model.image_decoder, "decode", watch)
    for _ in range(2):  # computed once, independently of the images
        pipe("a red cat", generator=torch.Generator().manual_seed(3), output_type="pt")
    tokenizer = pipe.tokenizer
    empty = [*tokenizer.encode(" "), tokenizer.image_start_id]
    assert [row == empty for row in rows] == [True, False, False]
    assert torch.equal(*seen)
    assert bool(seen[0].any())


def drop_tower(folder: Path) -> None:
    change_weights(folder, lambda name: not name.startswith("model.gen_vision_tower."))


def change_weights(folder: Path, keep: Callable[[str], bool], **added: Tensor) -> None:
    """Rewrites the shards and the index with some weights removed and others added."""
    index = json.loads((folder / INDEX).read_text())
    places = {name: file for name, file in index["weight_map"].items() if keep(name)}
    for file in set(places.values()):
        state = {n: t for n, t in load_file(folder / file).items() if keep(n)}
        if file.startswith("model-00001-"):
            state |= added
            places |= dict.fromkeys(added, file)
        save_file(state, folder / file)
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))


def test_without_the_tower_a_model_draws_and_reports_missing_abilities(
    released_folder: Path, tmp_path: Path
) -> None:
    expected = draw(released_folder)
    drop_tower(released_folder)
    assert torch.equal(draw(released_folder), expected)
    convert(released_folder, tmp_path / "ours")
    assert not (tmp_path / "ours/image_encoder").exists()
    assert torch.equal(draw(tmp_path / "ours"), expected)
    convert(tmp_path / "ours", tmp_path / "again", to="published")
    require_same(tensors(tmp_path / "again"), tensors(released_folder))
    pipe = Blip3oPipeline.from_pretrained(tmp_path / "ours", device="cpu", dtype="fp32")
    with pytest.raises(UsageError, match=r"no image encoder: .*model\.gen_vision_tower"):
        pipe.encode([torch_image(tmp_path)])


def torch_image(folder: Path) -> Path:
    from PIL import Image

    Image.new("RGB", (16, 16), "red").save(folder / "red.png")
    return folder / "red.png"


def test_without_the_decoder_a_model_returns_features_and_answers(
    released_folder: Path, tmp_path: Path
) -> None:
    shutil.rmtree(released_folder / "diffusion-decoder")
    convert(released_folder, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "again", to="published")
    require_same(tensors(tmp_path / "again"), tensors(released_folder))
    for folder in (released_folder, tmp_path / "ours"):
        pipe = Blip3oPipeline.from_pretrained(folder, device="cpu", dtype="fp32")
        with pytest.raises(UsageError, match=r"no image decoder: .*diffusion-decoder/") as caught:
            pipe("a cat", callback_on_step_end=lambda *_: pytest.fail("refused after the work"))
        assert "\n" not in str(caught.value)
        assert pipe("a cat", output_type="features").images.shape == (1, 4, 16)
        assert isinstance(pipe.ask(torch_image(tmp_path), "what is this?"), str)


def test_a_tied_head_that_equals_the_table_is_skipped(
    released_folder: Path, tmp_path: Path
) -> None:
    change_weights(released_folder, lambda name: name != "lm_head.weight")
    edit_json(released_folder / "config.json", tie_word_embeddings=True)
    load_model(released_folder)
    file = next(
        f for f in released_folder.glob("model-*") if "model.embed_tokens.weight" in load_file(f)
    )
    table = load_file(file)["model.embed_tokens.weight"]
    change_weights(released_folder, lambda _: True, **{"lm_head.weight": table.clone()})
    assert load_model(released_folder).model.backbone.lm_head is None
    change_weights(released_folder, lambda _: True, **{"lm_head.weight": table + 1})
    assert "lm_head.weight is not model.embed_tokens.weight" in refusal(
        released_folder, tmp_path / "dest"
    )


def test_unused_weights_of_early_revisions_are_skipped(released_folder: Path) -> None:
    change_weights(released_folder, lambda _: True, **{"model.vae.weight": torch.zeros(1)})
    load_model(released_folder)


# ---------------------------------------------------------------------------------------------
# Invalid input


def test_every_missing_and_damaged_shard_is_named(released_folder: Path, tmp_path: Path) -> None:
    one, two, _ = sorted(released_folder.glob("model-*.safetensors"))
    one.unlink()
    two.write_bytes(two.read_bytes()[:-100])
    message = refusal(released_folder, tmp_path / "dest")
    assert f"{one} is missing" in message
    assert f"{two} is damaged" in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not an index of shards"),
        ("[]", "is not an index of shards"),
        ('{"weight_map": {}}', "it names none"),
        ('{"weight_map": {"a": "../../secret.safetensors"}}', "it names '../../secret"),
        ('{"weight_map": {"a": "model.bin", "b": 3}}', "it names 'model.bin', 3"),
    ],
)
def test_an_invalid_index_is_named(
    released_folder: Path, tmp_path: Path, text: str, said: str
) -> None:
    (released_folder / INDEX).write_text(text)
    message = refusal(released_folder, tmp_path / "dest")
    assert INDEX in message
    assert said in message


def test_an_index_that_does_not_fit_its_shards_is_named(
    released_folder: Path, tmp_path: Path
) -> None:
    index = json.loads((released_folder / INDEX).read_text())
    file = index["weight_map"].pop("model.norm.weight")
    index["weight_map"]["model.nothing.weight"] = file
    (released_folder / INDEX).write_text(json.dumps(index))
    message = refusal(released_folder, tmp_path / "dest")
    assert f"does not fit {file}, which lacks model.nothing.weight" in message
    assert f"does not fit {file}, which also holds model.norm.weight" in message


def test_missing_extra_and_misshapen_weights_of_all_parts_are_listed(
    released_folder: Path, tmp_path: Path
) -> None:
    gone = ("model.norm.weight", "model.gen_vision_tower.vision_tower.model.cls_token")
    change_weights(
        released_folder,
        lambda name: name not in (*gone, "model.latent_queries"),
        **{"model.latent_queries": torch.zeros(1, 5, 16), "optimizer": torch.zeros(1)},
    )
    file = next((released_folder / UNET).glob("*.safetensors"))
    state = load_file(file)
    del state["conv_in.weight"]
    save_file(state, file)
    message = refusal(released_folder, tmp_path / "dest")
    assert f"missing: diffusion-decoder/unet.conv_in.weight, {gone[1]}, {gone[0]};" in message
    assert "extra: optimizer;" in message
    assert "wrong shape: model.latent_queries [1, 5, 16] instead of [1, 4, 16]" in message


def test_pickles_are_refused_and_named(released_folder: Path, tmp_path: Path) -> None:
    for file in (*released_folder.glob("model-*"), released_folder / INDEX):
        file.unlink()
    (released_folder / "pytorch_model.bin").write_bytes(b"x")
    message = refusal(released_folder, tmp_path / "dest")
    assert "pytorch_model.bin, training_args.bin may be pickles" in message
    with pytest.raises(UsageError, match="is a pickle, which can run any program"):
        convert(released_folder / "pytorch_model.bin", tmp_path / "dest")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "qwen2_5_vl", "architectures": ["Qwen2_5_VL"]}, "is of another model"),
        ({"gen_vision_tower": None}, "gen_vision_tower must be 'eva-clip-E-14-plus'"),
        ({"gen_pooling": "late"}, "gen_pooling must be early_pool2d_N"),
        ({"gen_pooling": "early_pool2d_5"}, "gen_pooling: image_px 448"),
        ({"n_query": 9}, "model.latent_queries [1, 4, 16] instead of [1, 9, 16]"),
        ({"num_attention_heads": 0}, "config.json of the published model is unfit"),
        ({"model_type": None, "architectures": 3}, "is of another model"),
        ({"num_attention_heads": 3}, "config.json of the published model is unfit"),
        ({"n_query": "many"}, "generator.num_query_tokens must be int"),
        ({"blip3o": {"backbone": {}}}, "blip3o may hold image_encoder"),
        (
            {"blip3o": {"generator": {"kind": "query_dit"}}},
            "generator.hidden_size is required",
        ),
    ],
)
def test_a_config_of_another_model_is_refused(
    released_folder: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    edit_json(released_folder / "config.json", **changes)
    message = refusal(released_folder, tmp_path / "dest")
    assert said in message
    assert str(released_folder) in message


@pytest.mark.parametrize("missing", ["n_query", "hidden_size", "vision_config"])
def test_a_config_that_lacks_a_field_is_refused(
    released_folder: Path, tmp_path: Path, missing: str
) -> None:
    file = released_folder / "config.json"
    data = json.loads(file.read_text())
    del data[missing]
    file.write_text(json.dumps(data))
    assert f"lacks '{missing}'" in refusal(released_folder, tmp_path / "dest")


def test_an_incomplete_decoder_is_named_file_by_file(released_folder: Path, tmp_path: Path) -> None:
    decoder = released_folder / "diffusion-decoder"
    (decoder / "vae/config.json").unlink()
    shutil.rmtree(decoder / "scheduler")
    message = refusal(released_folder, tmp_path / "dest")
    assert f"missing: {decoder}/vae/config.json, {decoder}/scheduler/scheduler_config" in message


@pytest.mark.parametrize(
    ("file", "changes", "said"),
    [
        (
            "unet",
            {"in_channels": 9, "addition_embed_type": None},
            "unet.in_channels 9 instead of 4",
        ),
        ("unet", {"norm_num_groups": 3}, "does not describe a decoder"),
        ("vae", {"act_fn": "relu"}, "vae.act_fn 'relu' instead of 'silu'"),
    ],
)
def test_another_decoder_is_refused(
    released_folder: Path, tmp_path: Path, file: str, changes: dict[str, Any], said: str
) -> None:
    edit_json(released_folder / "diffusion-decoder" / file / "config.json", **changes)
    assert said in refusal(released_folder, tmp_path / "dest")


def test_missing_decoder_weights_are_named(released_folder: Path, tmp_path: Path) -> None:
    for file in (released_folder / UNET).glob("*.safetensors"):
        file.unlink()
    message = refusal(released_folder, tmp_path / "dest")
    assert f"{UNET}/diffusion_pytorch_model.safetensors is missing" in message
