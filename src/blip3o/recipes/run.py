"""Makes a run out of its config: data, tokenizer, model, cache, trainer; and leaves a model."""

import itertools
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from blip3o.core.device import keep_freed_memory, resolve_device
from blip3o.core.distributed import exchange, main_first, process_group, rank, world_size
from blip3o.core.errors import NotFiniteError, UsageError
from blip3o.core.files import atomic_folder
from blip3o.core.log import say
from blip3o.data.captions import captions_of
from blip3o.data.collate import Preparer
from blip3o.data.conversations import TALK_FIELDS
from blip3o.data.loader import Loader
from blip3o.data.tasks import CONVERSATIONS
from blip3o.models.encoders.normalizer import FeatureNormalizer
from blip3o.models.unified import UnifiedModel
from blip3o.recipes.checks import check_room, check_run
from blip3o.recipes.data_watch import watch_data
from blip3o.recipes.features import feature_cache
from blip3o.recipes.left_out import LeftOut
from blip3o.recipes.samples import SampleWriter
from blip3o.recipes.scenes import ensure_scenes
from blip3o.recipes.start import build_model, check_start
from blip3o.text.chat import ChatTemplate
from blip3o.text.tokenizer import Tokenizer, train_tokenizer
from blip3o.train.adapters import merged_adapters
from blip3o.train.callbacks import Callback
from blip3o.train.checkpoint import check_resumable
from blip3o.train.claim import claimed
from blip3o.train.config import RunConfig
from blip3o.train.curves import draw_curves
from blip3o.train.trainer import Trainer
from blip3o.weights.folder import save_model

QUARANTINE = "quarantine.jsonl"
_TOKENIZER_RECORDS = 4000
_NORMALIZER_BATCHES = 32


@process_group()
def train(config: RunConfig, run_dir: Path) -> None:
    """Trains a run to its end and writes its model folder; with all processes of a launcher.

    Args:
        config: the whole run.
        run_dir: the run folder; created if missing.

    Raises:
        UsageError: for anything that does not fit, or if another run holds the folder.
        PreemptedError: if a signal asked to stop; the same call resumes.
    """
    check_resumable(run_dir, config)
    check_run(config)
    check_start(config)
    if resolve_device(config.train.device).type == "cpu":
        keep_freed_memory()
    with claimed(run_dir):
        _train(config, run_dir)


def _train(config: RunConfig, run_dir: Path) -> None:
    tokenizer, model = build_model(config)
    check_room(config, model, run_dir)
    with main_first():
        ensure_scenes(config.data)
    with main_first():
        tokenizer = tokenizer or _own_tokenizer(config, run_dir)
    _check_tokens(tokenizer, config)
    objectives = [objective.build(config.model) for objective in config.objectives]
    preparer = _preparer(config, tokenizer, model)
    loader = Loader(
        config.data,
        preparer,
        seed=config.train.seed,
        global_batch_size=config.train.global_batch_size,
        micro_batch_size=config.train.micro_batch_size,
        quarantine=run_dir / QUARANTINE,
        rank=rank(),
        world_size=world_size(),
    )
    left_out = LeftOut(loader, config.data, preparer.cache, run_dir / QUARANTINE)
    finish = _Finish(tokenizer, loader, left_out)
    samples = SampleWriter(tokenizer, loader)
    notes = watch_data(run_dir, loader.sources, config.train.steps)
    Trainer(run_dir, config, model, objectives, loader, [samples, finish], notes).fit()


class _Finish(Callback):
    """Writes the curves along the way and the model folder in the end."""

    def __init__(self, tokenizer: Tokenizer, loader: Loader, left_out: LeftOut) -> None:
        self._tokenizer = tokenizer
        self._loader = loader
        self._left_out = left_out

    def on_checkpoint(self, trainer: Trainer, step: int, folder: Path) -> None:
        del step, folder
        draw_curves(trainer.run_dir)

    def on_end(self, trainer: Trainer) -> None:
        model = trainer.model
        assert isinstance(model, UnifiedModel)
        model.eval()
        if any(name.startswith("image_encoder.") for name in trainer.parameters):
            _fit_normalizers(model, self._loader, trainer.precision.device)
        with merged_adapters(model):
            save_model(model, self._tokenizer, trainer.run_dir / "model", torch.float32)
        say(f"model: {trainer.run_dir / 'model'}")
        self._left_out.tell(trainer.state.samples_seen)


def link_model(model: Path, link: Path) -> None:
    """Copies a model folder to a second place, whole or not at all.

    Args:
        model: the folder.
        link: where to; replaced.
    """
    with atomic_folder(link) as scratch:
        shutil.copytree(model, scratch, dirs_exist_ok=True)
        shutil.rmtree(link, ignore_errors=True)


def _own_tokenizer(config: RunConfig, run_dir: Path) -> Tokenizer:
    """Learns a tokenizer from the run's own texts, once."""
    folder = run_dir / "tokenizer"
    if not (folder / "tokenizer.json").exists():
        texts = itertools.islice(_texts(config), 20 * _TOKENIZER_RECORDS)
        train_tokenizer(texts, config.model.backbone.vocab_size).save(folder)
    return Tokenizer.load(folder)


def _texts(config: RunConfig) -> Any:  # noqa: ANN401  (a generator of strings)
    entries = config.data.mixture
    named = [entry.conversation for entry in entries if entry.conversation is not None]
    conversations = dict.fromkeys([*CONVERSATIONS.values(), *TALK_FIELDS, *named])
    for source in [one.build() for one in dict.fromkeys(entry.source for entry in entries)]:
        for position in range(min(len(source), _TOKENIZER_RECORDS)):
            try:
                yield from _said(source.read(position)[2], conversations)
            except (ValueError, OSError):
                continue  # training is where bad samples are counted
    chat = config.model.chat
    yield from 100 * [chat.generate, chat.edit, chat.reconstruct, "user\n", "assistant\n"]


def _said(fields: Mapping[str, Any], conversations: Iterable[str]) -> list[str]:
    """Returns the texts of a record, without those that are none."""
    said = [*(captions_of(fields) or ()), fields.get("instruction")]
    for name in conversations:
        turns = fields.get(name)
        said += [
            turn.get("value", turn.get("content"))
            for turn in (turns if isinstance(turns, list) else ())
            if isinstance(turn, dict)
        ]
    # JSON may hold half characters, which are no text.
    return [one.encode(errors="ignore").decode() for one in said if isinstance(one, str)]


def _check_tokens(tokenizer: Tokenizer, config: RunConfig) -> None:
    backbone = config.model.backbone
    if tokenizer.image_pad_id != backbone.image_token_id:
        raise UsageError(
            f"model.backbone.image_token_id is {backbone.image_token_id}, but the tokenizer's "
            f"image placeholder is {tokenizer.image_pad_id}"
        )
    if tokenizer.vocab_size > backbone.vocab_size:
        raise UsageError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, model.backbone.vocab_size is "
            f"{backbone.vocab_size}"
        )


def _preparer(config: RunConfig, tokenizer: Tokenizer, model: UnifiedModel) -> Preparer:
    chat = ChatTemplate(tokenizer, config.model.chat, config.model.num_prompt_image_tokens)
    regions = [o for o in config.objectives if o.kind == "image_text"]
    cache = None
    if config.data.feature_cache:
        cache = feature_cache(config, model.image_encoder, rank(), world_size())
        exchange(None)  # it is whole when all processes have done their share
    return Preparer(
        chat=chat,
        image_px=config.data.image_px,
        max_text_tokens=config.data.max_text_tokens,
        things=regions[0].things if regions else (),
        colors=regions[0].colors if regions else (),
        cache=cache,
        keep_pixels=any(o.kind == "pixel_decoding" for o in config.objectives),
        question_images=config.model.question_images,
        token_px=getattr(config.model.backbone, "token_px", 1),
    )


@torch.no_grad()
def _fit_normalizers(model: UnifiedModel, loader: Loader, device: torch.device) -> None:
    """Fits the feature normalizers to the trained encoder, on the run's own first images."""
    features = []
    for groups in itertools.islice(loader(0), _NORMALIZER_BATCHES * world_size()):
        pixels = [batch.target_pixels for batch in groups if batch.target_pixels is not None]
        features += [model.encode_images(one.to(device)).float().cpu() for one in pixels]
    if not all(bool(one.isfinite().all()) for one in features):
        raise NotFiniteError("image features are not numbers")
    for normalizer in (one for one in model.modules() if isinstance(one, FeatureNormalizer)):
        normalizer.fit(torch.cat(features))
