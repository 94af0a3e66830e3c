"""Writes the finished set of a curation: shards, lists, scores, preference pairs and a card.

OUT/data/NAME-000000.tar ...   shards that training reads
OUT/data/scores.parquet        every draft: its scores, its end, and the reason
OUT/data/README.md             the card
OUT/records.jsonl              the records with their whole history; images in OUT/images
OUT/preferences.jsonl          accepted and rejected images of the same prompt
"""

import datetime
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from blip3o import __version__
from blip3o.core.config import dump_yaml
from blip3o.core.errors import UsageError
from blip3o.core.files import atomic_folder, read_text, write_atomic
from blip3o.core.lock import locked
from blip3o.curate.config import CurateConfig
from blip3o.curate.draft import Draft
from blip3o.curate.images import ImageStore
from blip3o.data.pack import pack
from blip3o.data.sources.shards import INDEX_SUFFIX

DATA = "data"
RECORDS, PREFERENCES = "records.jsonl", "preferences.jsonl"
_STARTED = "started.txt"
_LONGEST_CELL = 100


def require_libraries() -> None:
    """Checks before any work, and any payment, that the finished set can be written.

    Raises:
        UsageError: if a library is missing.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise UsageError("this needs pyarrow; install it: pip install 'blip3o[curate]'") from error


def note_start(out: Path) -> str:
    """Returns the day on which a run was started first, and notes it.

    SOURCE_DATE_EPOCH, the custom of reproducible builds, replaces the clock.

    Raises:
        UsageError: if that variable is not a number of seconds.
    """
    file = out / _STARTED
    if not file.exists():
        given = os.environ.get("SOURCE_DATE_EPOCH")
        try:
            now = datetime.datetime.now(datetime.UTC)
            day = datetime.datetime.fromtimestamp(int(given), datetime.UTC) if given else now
        except (ValueError, OverflowError, OSError) as error:
            raise UsageError(f"SOURCE_DATE_EPOCH={given} is not a number of seconds") from error
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(file, day.date().isoformat() + "\n", is_shared=True)
    return read_text(file).strip()


def publish(config: CurateConfig, drafts: Sequence[Draft], images: ImageStore, out: Path) -> Path:
    """Writes the finished set, and replaces an earlier one.

    Args:
        config: the settings.
        drafts: all drafts after the last stage.
        images: their image files.
        out: folder of the run.

    Returns:
        The folder of the shards.

    Raises:
        UsageError: if no draft became a record, or the folder cannot be written.
    """
    finished = [one for one in drafts if one.is_finished]
    if not finished:
        (stage, reason), count = Counter(map(_end_of, drafts)).most_common(1)[0]
        raise UsageError(
            f"none of {len(drafts)} drafts became a record; {count} of them: {stage}: {reason}"
        )
    started = note_start(out)
    with locked(out / ".publish.lock"):
        _write_lines(
            out / RECORDS, (_record(one, images, out, started, config) for one in finished)
        )
        _write_lines(out / PREFERENCES, _preferences(finished, images, out))
        folder, new = out / DATA, out / "new data"
        shutil.rmtree(new, ignore_errors=True)  # left by a killed process
        with atomic_folder(new) as scratch:
            pack(
                str(out / RECORDS),
                scratch,
                name=config.name,
                shard_size=config.shard_size,
                jobs=1,
            )
            # Files with times of files would differ between equal runs. Nothing is left to resume,
            # and the indices of the shards are written again on their first use.
            for file in (scratch / f"{config.name}.pack.json", *scratch.glob("*" + INDEX_SUFFIX)):
                file.unlink()
            _write_scores(scratch / "scores.parquet", drafts)
            (scratch / "curation.yaml").write_text(dump_yaml(config), encoding="utf-8")
            (scratch / "README.md").write_text(card(config, drafts, started), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)
    return folder


def _end_of(draft: Draft) -> tuple[str, str]:
    """Returns the stage and the reason why a draft is no record."""
    if draft.dropped:
        return draft.dropped_by, draft.dropped
    if draft.failures:
        return draft.failures[-1].stage, draft.failures[-1].reason
    return "", "no image was drawn"


def _record(
    draft: Draft, images: ImageStore, out: Path, started: str, config: CurateConfig
) -> dict[str, Any]:
    def place(sha256: str) -> str:
        return images.path(sha256).relative_to(out).as_posix()

    if draft.source:
        content = {
            "source": place(draft.source),
            "target": place(draft.image),
            "instruction": draft.prompt,
        }
    else:
        content = {"image": place(draft.image), "caption": draft.prompt}
    return {
        "id": draft.name,
        **content,
        "category": draft.category,
        "scores": draft.scores,
        "facts": draft.facts,
        "provenance": {
            "curation": config.name,
            "started": started,
            "software": f"blip3o {__version__}",
            "licenses": sorted({step.license for step in draft.steps if step.license}),
            "source_prompt": draft.source_prompt,
            "sha256": draft.image,
            "steps": [
                {name: value for name, value in vars(step).items() if value not in ("", None)}
                for step in draft.steps
            ],
        },
    }


def _preferences(
    finished: Sequence[Draft], images: ImageStore, out: Path
) -> Iterator[dict[str, Any]]:
    """Yields pairs of an accepted and a rejected image of the same text."""
    for draft in finished:
        for failure in draft.failures:
            if failure.prompt == draft.prompt and failure.image != draft.image:
                source = images.path(draft.source).relative_to(out).as_posix()
                yield {
                    "id": draft.name,
                    "prompt": draft.prompt,
                    **({"source": source} if draft.source else {}),
                    "chosen": images.path(draft.image).relative_to(out).as_posix(),
                    "rejected": images.path(failure.image).relative_to(out).as_posix(),
                    "category": draft.category,
                    "rejected_by": failure.stage,
                    "reason": failure.reason,
                    "chosen_scores": draft.scores,
                    "rejected_scores": failure.scores,
                }


def _write_lines(file: Path, rows: Iterator[dict[str, Any]]) -> None:
    write_atomic(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _write_scores(file: Path, drafts: Sequence[Draft]) -> None:
    """Writes one row per draft; every score is a column."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = sorted({name for one in drafts for name in one.scores})
    columns: dict[str, Any] = {
        "id": [one.name for one in drafts],
        "category": [one.category for one in drafts],
        "prompt": [one.prompt for one in drafts],
        "is_record": [one.is_finished for one in drafts],
        "stage": ["" if one.is_finished else _end_of(one)[0] for one in drafts],
        "reason": ["" if one.is_finished else _end_of(one)[1] for one in drafts],
        "image": [one.image for one in drafts],
        "num_failures": [len(one.failures) for one in drafts],
    }
    for name in names:
        values = [one.scores.get(name) for one in drafts]
        columns[f"score.{name}"] = pa.array(values, pa.float64())
    pq.write_table(pa.table(columns), file)


def card(config: CurateConfig, drafts: Sequence[Draft], started: str) -> str:
    """Returns the card of a finished set, as Markdown."""
    finished = [one for one in drafts if one.is_finished]
    licenses = sorted({one.license for one in config.models})
    lines = [
        "---",
        f"pretty_name: {json.dumps(config.name)}",
        "license: other",
        f"license_name: {json.dumps('; '.join(licenses))}",
        "---",
        "",
        f"# {config.name}",
        "",
        *([config.description, ""] if config.description else []),
        f"{len(finished)} records of {len(drafts)} drafts, made by `blip3o data curate` "
        f"({__version__}), started on {started}. `curation.yaml` holds all settings.",
        "",
        "| category | drafts | records |",
        "|---|---|---|",
    ]
    drafted, kept = (Counter(one.category for one in some) for some in (drafts, finished))
    lines += [f"| {name} | {drafted[name]} | {kept[name]} |" for name in config.categories]
    lines += ["", "## Models", "", "| name | model | licence of its answers |", "|---|---|---|"]
    lines += [
        f"| {one.name} | {one.identity()['model']} | {one.license} |" for one in config.models
    ]
    lines += ["", "## Drafts that are no records", ""]
    lines += ["| stage | drafts | such as |", "|---|---|---|"]
    ends = [_end_of(one) for one in drafts if not one.is_finished]
    for stage, count in Counter(stage for stage, _ in ends).most_common():
        example = next(reason for name, reason in ends if name == stage)
        lines.append(f"| {stage} | {count} | {_cell(example)} |")
    rejected = Counter(one.stage for draft in drafts for one in draft.failures)
    lines += ["", "## Rejected images", "", "| stage | images |", "|---|---|"]
    lines += [f"| {stage} | {count} |" for stage, count in rejected.most_common()]
    lines += ["", "## Contamination", "", *_contamination(config, drafts), ""]
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Returns untrusted text for a cell of a table: one line, cut, and without marks."""
    line = " ".join(text.split()).replace("|", "/").replace("<", "&lt;")
    return line if len(line) <= _LONGEST_CELL else f"{line[:_LONGEST_CELL]}..."


def _contamination(config: CurateConfig, drafts: Sequence[Draft]) -> list[str]:
    stages = [
        (name, stage)
        for name, stage in zip(config.stage_names, config.stages, strict=True)
        if stage.kind == "decontaminate"
    ]
    if not stages:
        return ["The texts were not compared with the prompts of any benchmark."]
    lines: list[str] = []
    for name, stage in stages:
        against = ", ".join(one.partition("=")[0] for one in getattr(stage, "against", ()))
        count = sum(one.dropped_by == name for one in drafts)
        lines.append(
            f"Texts were compared with the prompts of {against}, in other words too "
            f"(`blip3o data decontaminate`); {count} drafts repeated one and are left out."
        )
    return lines
