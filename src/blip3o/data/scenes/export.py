"""Writes scenes, edits, pairs and groups to files that training reads like any other data set."""

import functools
import io
import itertools
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from blip3o.core.errors import UsageError
from blip3o.core.files import require_room, size_text, write_atomic
from blip3o.core.lock import locked
from blip3o.core.log import say
from blip3o.core.rng import numpy_rng
from blip3o.core.types import IMAGE_MARK
from blip3o.data.parallel import in_processes
from blip3o.data.scenes.captions import caption_texts, group_texts, request_of
from blip3o.data.scenes.edits import sample_chain, sample_edit
from blip3o.data.scenes.questions import QA, conversation, names
from blip3o.data.scenes.render import render
from blip3o.data.scenes.scene import (
    check_groups,
    check_split,
    sample_groups,
    sample_pair,
    sample_scene,
)
from blip3o.data.scenes.talk import small_talk, talk_about
from blip3o.data.scenes.text_questions import restate, text_conversation
from blip3o.data.scenes.types import Scene
from blip3o.data.scenes.words import shuffled
from blip3o.data.scenes.world import FULL, World
from blip3o.data.sources.references import image_role

VERSION = 10
"""Version of the contents; raise it when the same settings would write other contents."""
Format = Literal["webdataset", "jsonl"]
_SAMPLE_BYTES = {
    "scenes": (5_400, 0.28),
    "edits": (4_500, 0.45),
    "pairs": (4_550, 0.25),
    "chains": (7_000, 0.75),
    "groups": (5_500, 0.39),
}
"""Bytes per sample, and further bytes per pixel of the image; measured from 48 to 192 px."""
_MEASURED_PX = 192
_TALK_SHARE, _TEXT_TALK_SHARE = 0.25, 0.1
"""Shares of conversations about an image with a turn of small talk, and of texts that are talk."""
_Member = tuple[str, bytes]
_Shard = tuple["ScenesExport", str, int, int]
"""Settings, kind of samples, first sample, and end of the range of samples."""


@dataclass(frozen=True, kw_only=True)
class ScenesExport:
    """Settings of an export; UsageError if one of them is invalid."""

    out_dir: Path
    num_scenes: int
    num_edits: int = 0
    num_pairs: int = 0
    num_chains: int = 0
    num_groups: int = 0
    seed: int = 0
    px: int = 96
    """Side of the images in pixels."""
    split: str = "train"
    shard_size: int = 2000
    """Samples per shard."""
    format: Format = "webdataset"
    world: World = FULL

    def __post_init__(self) -> None:
        check_split(self.split)
        if self.format not in ("webdataset", "jsonl"):
            raise UsageError(f"unknown format {self.format!r}; known: webdataset, jsonl")
        least_of = {**{f"num_{what}": 0 for what in _SAMPLERS}, "px": 16, "shard_size": 1}
        for name, least in least_of.items():
            if getattr(self, name) < least:
                raise UsageError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.num_groups:
            check_groups(self.world)


def export_scenes(
    out_dir: str | Path,
    num_scenes: int,
    num_edits: int = 0,
    num_pairs: int = 0,
    *,
    num_chains: int = 0,
    num_groups: int = 0,
    seed: int = 0,
    px: int = 96,
    split: str = "train",
    shard_size: int = 2000,
    num_processes: int = 2,
    format: Format = "webdataset",
    world: World = FULL,
) -> list[Path]:
    """Writes shards `scenes-NNNNNN.tar`, `edits-...` and so on (or `.jsonl` with images).

    The bytes depend only on the arguments. A shard gets its name when it is complete, and complete
    shards are kept, so the same call resumes an interrupted one.

    Args:
        out_dir: folder for the shards; created if missing.
        num_scenes: number of scenes.
        num_edits: number of edits: an image, an instruction and the edited image.
        num_pairs: number of scenes of two different things, with captions of their relation.
        num_chains: number of chains of edits: conversations for the task `interleaved`.
        num_groups: number of scenes of three or four different things, or of two of which one
            occurs more than once.
        seed: the data set's seed.
        px: side of the images in pixels.
        split: "train", "val" or "heldout".
        shard_size: samples per shard.
        num_processes: number of processes.
        format: "webdataset" for tar files, "jsonl" for lists and image files.
        world: the things, colors and numbers of objects to draw from.

    Returns:
        The shards in order: scenes, edits, pairs, chains, groups.

    Raises:
        UsageError: for bad arguments, or a folder that holds an export with other settings.
    """
    settings = ScenesExport(
        out_dir=Path(out_dir),
        num_scenes=num_scenes,
        num_edits=num_edits,
        num_pairs=num_pairs,
        num_chains=num_chains,
        num_groups=num_groups,
        seed=seed,
        px=px,
        split=split,
        shard_size=shard_size,
        format=format,
        world=world,
    )
    settings.out_dir.mkdir(parents=True, exist_ok=True)
    shards = [
        (settings, what, start, min(start + shard_size, total))
        for what in _SAMPLERS
        for total in [getattr(settings, f"num_{what}")]
        for start in range(0, total, shard_size)
    ]
    with locked(settings.out_dir / "export.lock"):  # of two calls at the same time, one writes
        _check_settings(settings)
        _write_missing(settings, shards, num_processes)
    return [_shard_path(*shard[:3]) for shard in shards]


def _write_missing(settings: ScenesExport, shards: list[_Shard], num_processes: int) -> None:
    for part in settings.out_dir.rglob(".*.part"):  # left by killed calls
        part.unlink(missing_ok=True)
    missing = [shard for shard in shards if not _shard_path(*shard[:3]).exists()]
    if not missing:
        return
    need = sum((stop - start) * _sample_bytes(what, one.px) for one, what, start, stop in missing)
    place = settings.out_dir
    require_room(place, need, f"{len(missing)} shards of scenes", "choose another folder")
    count = sum(stop - start for _, _, start, stop in missing)
    say(
        f"writing {count} samples in {len(missing)} shards, about {size_text(need)}, to {place}; "
        "if stopped, the same command resumes"
    )
    try:
        for _ in in_processes(_write_shard, missing, num_processes, "shards"):
            pass
    except KeyboardInterrupt:
        there = sum(_shard_path(*shard[:3]).exists() for shard in shards)
        say(f"{there} of {len(shards)} shards are in {place}; the next call writes the rest")
        raise


def _sample_bytes(what: str, px: int) -> int:
    """Returns an estimate of a sample's bytes; large images count as 192 px."""
    base, each = _SAMPLE_BYTES[what]
    return round(base + each * min(px, _MEASURED_PX) ** 2)


def _check_settings(settings: ScenesExport) -> None:
    """Refuses to mix two exports in one folder."""
    path = settings.out_dir / "export.json"
    now = {"version": VERSION, **_plain(settings)}
    if path.exists():
        # A setting that an older version did not have is at its default.
        defaults = _plain(ScenesExport(out_dir=settings.out_dir, num_scenes=0))
        before = {**defaults, **json.loads(path.read_text(encoding="utf-8"))}
        other = [f"{k}={before.get(k)!r}" for k in now if before.get(k) != now[k]]
        if other:
            raise UsageError(
                f"{settings.out_dir} holds an export with {', '.join(other)}; choose another folder"
            )
    write_atomic(path, json.dumps(now, indent=1).encode())


def _plain(settings: ScenesExport) -> dict[str, Any]:
    """Returns the settings as JSON would store them, without the folder."""
    options = {name: value for name, value in asdict(settings).items() if name != "out_dir"}
    return json.loads(json.dumps(options))


def is_current(folder: Path) -> bool:
    """Returns whether an export is of the current version."""
    try:
        settings = json.loads((folder / "export.json").read_text(encoding="utf-8"))
        return settings["version"] == VERSION
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _shard_path(settings: ScenesExport, what: str, start: int) -> Path:
    end = "tar" if settings.format == "webdataset" else "jsonl"
    return settings.out_dir / f"{what}-{start // settings.shard_size:06d}.{end}"


def _write_shard(shard: _Shard) -> None:
    settings, what, start, stop = shard
    samples = (_SAMPLERS[what](settings, index) for index in range(start, stop))
    path = _shard_path(settings, what, start)
    if settings.format == "webdataset":
        content = _tar_bytes(itertools.chain.from_iterable(map(_members, samples)))
    else:
        content = _write_lines(samples, path)
    # A process of a killed call may still write the same file.
    write_atomic(path, content, is_shared=True)


_Sample = tuple[str, dict[str, Image.Image], dict[str, Any]]
"""Key, images by role (an only image has the role ""), and fields."""


def _scene_sample(settings: ScenesExport, index: int) -> _Sample:
    scene = sample_scene(settings.seed, index, settings.split, settings.world)
    rng = numpy_rng(settings.seed, f"scenes/{settings.split}/words", index)
    return f"{index:08d}", {"": render(scene, settings.px)}, scene_fields(scene, index, rng)


def scene_fields(scene: Scene, index: int, rng: np.random.Generator) -> dict[str, Any]:
    """Returns captions, conversations and ground truth of a scene as JSON data."""
    captions = caption_texts(scene, rng)
    asked = conversation(scene, rng)
    if rng.random() < _TALK_SHARE:
        asked = shuffled(rng, [*asked, talk_about(scene, rng)])
    words, read = text_conversation(scene, rng)
    if rng.random() < _TEXT_TALK_SHARE:
        words, read = "", small_talk(rng)
    return {
        "captions": captions,
        "conversations": _turns(asked, f"{IMAGE_MARK}\n"),
        "text_conversations": _text_turns(_distinct(read), words),
        "restated": _turns([restate(request_of(scene, rng), rng)]),
        "names": _turns(names(scene, rng), f"{IMAGE_MARK}\n"),
        "objects": [asdict(one) for one in scene.objects],
        "background": scene.background,
        "index": index,
    }


def _distinct(asked: list[QA]) -> list[QA]:
    """Returns the questions without repetitions."""
    return list({qa.question: qa for qa in asked}.values())


def _turns(asked: list[QA], before: str = "") -> list[dict[str, Any]]:
    """Returns a conversation; the image mark or the description precedes its first question."""
    turns: list[dict[str, Any]] = []
    for qa in asked:
        turns.append({"from": "human", "value": before + qa.question})
        turns.append({"from": "gpt", "value": qa.answer})
        before = ""
    return turns


def _text_turns(asked: list[QA], words: str) -> list[dict[str, Any]]:
    first, *others = _turns(asked, words)
    return [{**first, "context": len(words)} if words else first, *others]


def _edit_sample(settings: ScenesExport, index: int) -> _Sample:
    edit = sample_edit(settings.seed, index, settings.split, settings.world, "train")
    scenes = {"source": edit.source, "target": edit.target}
    images = {role: render(scene, settings.px) for role, scene in scenes.items()}
    fields = {
        "instruction": edit.instruction,
        "kind": edit.kind,
        "source_objects": [asdict(one) for one in edit.source.objects],
        "target_objects": [asdict(one) for one in edit.target.objects],
        "background": edit.source.background,
        "index": index,
    }
    return f"{index:08d}", images, fields


def _group_sample(what: Literal["pairs", "groups"], settings: ScenesExport, index: int) -> _Sample:
    sample = sample_pair if what == "pairs" else sample_groups
    scene = sample(settings.seed, index, settings.split, settings.world)
    rng = numpy_rng(settings.seed, f"scenes/{what}/{settings.split}/words", index)
    captions = group_texts(scene, rng)
    fields = {
        "captions": captions,
        "restated": _turns([restate(request_of(scene, rng), rng)]),
        "conversations": _turns(conversation(scene, rng), f"{IMAGE_MARK}\n"),
        "objects": [asdict(one) for one in scene.objects],
        "background": scene.background,
        "index": index,
    }
    return f"{index:08d}", {"": render(scene, settings.px)}, fields


def _chain_sample(settings: ScenesExport, index: int) -> _Sample:
    edits = sample_chain(settings.seed, index, settings.split, settings.world, "train")
    scenes = [edits[0].source, *(edit.target for edit in edits)]
    images = {
        image_role(number) if number else "": render(scene, settings.px)
        for number, scene in enumerate(scenes)
    }
    turns: list[dict[str, Any]] = []
    before = f"{IMAGE_MARK}\n"
    for edit in edits:
        turns.append({"from": "human", "value": before + edit.instruction})
        turns.append({"from": "gpt", "value": IMAGE_MARK})
        before = ""
    fields = {
        "conversations": turns,
        "kinds": [edit.kind for edit in edits],
        "objects_of_images": [[asdict(one) for one in scene.objects] for scene in scenes],
        "background": scenes[0].background,
        "index": index,
    }
    return f"{index:08d}", images, fields


_SAMPLERS: dict[str, Callable[[ScenesExport, int], _Sample]] = {
    "scenes": _scene_sample,
    "edits": _edit_sample,
    "pairs": functools.partial(_group_sample, "pairs"),
    "chains": _chain_sample,
    "groups": functools.partial(_group_sample, "groups"),
}
"""Draws one sample, by the kind of samples; `num_` and the kind is the setting of their number."""


def _png(image: Image.Image) -> bytes:
    # At 96 px, level 1 is 1.6 times as fast to write as level 6, 7 % larger, as fast to read.
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _members(sample: _Sample) -> list[_Member]:
    key, images, fields = sample
    members = [(f"{key}.{role}.png".replace("..", "."), _png(p)) for role, p in images.items()]
    return [*members, (f"{key}.json", json.dumps(fields).encode())]


def _tar_bytes(members: Iterator[_Member]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)  # owner and time stay 0, so the bytes are reproducible
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _write_lines(samples: Iterator[_Sample], path: Path) -> bytes:
    """Writes the images into a folder next to `path` and returns the lines of the list."""
    folder = path.with_suffix("")
    folder.mkdir(exist_ok=True)
    lines = []
    for key, images, fields in samples:
        names: dict[str, Any] = {}
        for role, image in images.items():
            name = f"{key}.{role}.png" if role else f"{key}.png"
            write_atomic(folder / name, _png(image), is_shared=True)
            names[role or "image"] = f"{folder.name}/{name}"
        if image_role(1) in names:  # a list names several images in one field
            names = {"images": [*names.values()]}
        lines.append(json.dumps(names | fields) + "\n")
    return "".join(lines).encode()
