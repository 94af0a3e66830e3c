"""Assembles the trainer of a run from its config: model, tokenizer, data, cache and callbacks."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch

from blip3o.core.distributed import exchange, main_first, rank, world_size
from blip3o.core.errors import NotFiniteError
from blip3o.core.log import say
from blip3o.data.captions import captions_of
from blip3o.data.collate import Preparer
from blip3o.data.conversations import TALK_FIELDS
from blip3o.data.loader import Loader
from blip3o.data.tasks import CONVERSATIONS
from blip3o.models.encoders.normalizer import FeatureNormalizer
from blip3o.models.unified import UnifiedModel
from blip3o.objectives import Objective, RegionLabels
from blip3o.runs.checks import check_room
from blip3o.runs.data_watch import watch_data
from blip3o.runs.features import feature_cache
from blip3o.runs.initial import build_model
from blip3o.runs.left_out import LeftOut
from blip3o.runs.samples import SampleWriter
from blip3o.runs.scenes import ensure_scenes
from blip3o.text.chat import ChatTemplate
from blip3o.text.tokenizer import Tokenizer, train_tokenizer
from blip3o.train.adapters import merged_adapters
from blip3o.train.callbacks import Callback, Training
from blip3o.train.config import RunConfig
from blip3o.train.curves import draw_curves
from blip3o.train.trainer import Trainer
from blip3o.weights.folder import save_model
from blip3o.weights.stored import check_tokenizer

MODEL = "model"
"""Folder of the trained model, in the run folder."""
QUARANTINE = "quarantine.jsonl"
"""File in the run folder that lists bad samples."""
_TOKENIZER_RECORDS = 4000
"""Most records of a source whose texts train a tokenizer."""
_NORMALIZER_BATCHES = 32
"""Steps whose images fit the feature normalizers of a trained image encoder."""


def assemble(config: RunConfig, run_dir: Path) -> Trainer:
    """Returns a run's trainer with its model, data, objectives and callbacks.

    Args:
        config: the whole run.
        run_dir: the run folder, claimed by this run.

    Raises:
        UsageError: if parts do not fit together, a source is unusable or the disk is too full.
    """
    tokenizer, model = build_model(config)
    check_room(config, model, run_dir)
    with main_first():
        ensure_scenes(config.data)
    with main_first():
        tokenizer = tokenizer or _own_tokenizer(config, run_dir)
    check_tokenizer(tokenizer, config.model, "the tokenizer", "model.backbone")
    objectives = [one.build(config.model) for one in config.objectives]
    preparer = _preparer(config, tokenizer, model, objectives)
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
    samples = SampleWriter(tokenizer, loader, objectives)
    notes = watch_data(run_dir, loader.sources, config.train.steps)
    return Trainer(run_dir, config, model, objectives, loader, [samples, finish], notes)


class _Finish(Callback):
    """Draws the loss curves at each checkpoint and writes the model folder at the end."""

    def __init__(self, tokenizer: Tokenizer, loader: Loader, left_out: LeftOut) -> None:
        self._tokenizer = tokenizer
        self._loader = loader
        self._left_out = left_out

    def on_checkpoint(self, trainer: Training, step: int, folder: Path) -> None:
        del step, folder
        draw_curves(trainer.run_dir)

    def on_end(self, trainer: Training) -> None:
        model = trainer.model
        assert isinstance(model, UnifiedModel)
        model.eval()
        if any(name.startswith("image_encoder.") for name in trainer.parameters):
            _fit_normalizers(model, self._loader, trainer.precision.device)
        with merged_adapters(model):
            save_model(model, self._tokenizer, trainer.run_dir / MODEL, torch.float32)
        say(f"model: {trainer.run_dir / MODEL}")
        self._left_out.report_end(trainer.state.samples_seen)


def _own_tokenizer(config: RunConfig, run_dir: Path) -> Tokenizer:
    """Returns the tokenizer in the run folder; trains it on the run's texts if it is missing."""
    folder = run_dir / "tokenizer"
    if not (folder / "tokenizer.json").exists():
        texts = itertools.islice(_texts(config), 20 * _TOKENIZER_RECORDS)
        train_tokenizer(texts, config.model.backbone.vocab_size).save(folder)
    return Tokenizer.load(folder)


def _texts(config: RunConfig) -> Iterator[str]:
    """Yields the texts that a tokenizer of the run's own is trained on."""
    entries = config.data.mixture
    named = [entry.conversation for entry in entries if entry.conversation is not None]
    conversations = dict.fromkeys([*CONVERSATIONS.values(), *TALK_FIELDS, *named])
    for source in [one.build() for one in dict.fromkeys(entry.source for entry in entries)]:
        for position in range(min(len(source), _TOKENIZER_RECORDS)):
            try:
                yield from _texts_of(source.read(position)[2], conversations)
            except (ValueError, OSError):
                continue  # bad samples are counted during training
    chat = config.model.chat
    yield from 100 * [chat.generate, chat.edit, chat.reconstruct, "user\n", "assistant\n"]


def _texts_of(fields: Mapping[str, object], conversations: Iterable[str]) -> list[str]:
    """Returns the captions, instruction and turns of a record; skips malformed values."""
    found = [*(captions_of(fields) or ()), fields.get("instruction")]
    for name in conversations:
        turns = fields.get(name)
        found += [
            turn.get("value", turn.get("content"))
            for turn in (turns if isinstance(turns, list) else ())
            if isinstance(turn, dict)
        ]
    # JSON may contain unpaired surrogates, which cannot be encoded.
    return [one.encode(errors="ignore").decode() for one in found if isinstance(one, str)]


def _preparer(
    config: RunConfig, tokenizer: Tokenizer, model: UnifiedModel, objectives: Sequence[Objective]
) -> Preparer:
    chat = ChatTemplate(tokenizer, config.model.chat, config.model.num_prompt_image_tokens)
    regions = next((one.regions for one in objectives if one.regions), RegionLabels((), ()))
    cache = None
    if config.data.feature_cache:
        cache = feature_cache(config, model.image_encoder)
        exchange(None)  # wait until every process has cached its share
    image_px, decoder_px = config.model.image_encoder.image_px, config.model.image_decoder.image_px
    needs_pixels = any(one.needs_pixels for one in objectives)
    return Preparer(
        chat=chat,
        image_px=image_px,
        max_text_tokens=config.data.max_text_tokens,
        things=regions.things,
        colors=regions.colors,
        cache=cache,
        keep_pixels=needs_pixels,
        decoder_px=decoder_px if needs_pixels and decoder_px != image_px else None,
        question_images=config.model.question_images,
        token_px=config.model.backbone.token_px or 1,
    )


@torch.no_grad()
def _fit_normalizers(model: UnifiedModel, loader: Loader, device: torch.device) -> None:
    """Fits the feature normalizers to the trained image encoder, on the first images of the run."""
    features = []
    for groups in itertools.islice(loader(0), _NORMALIZER_BATCHES * world_size()):
        pixels = [batch.target_pixels for batch in groups if batch.target_pixels is not None]
        features += [model.encode_images(one.to(device)).float().cpu() for one in pixels]
    if not all(bool(one.isfinite().all()) for one in features):
        raise NotFiniteError("image features contain NaN or infinity")
    # A backbone with a vision tower has a normalizer for the features of that tower.
    readers = [model.normalizer]
    if model.config.backbone.image_channels is not None:
        readers += [one for one in model.backbone.modules() if isinstance(one, FeatureNormalizer)]
    for normalizer in readers:
        normalizer.fit(torch.cat(features))
