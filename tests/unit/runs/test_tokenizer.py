"""The tokenizer of a run from scratch is trained on all texts of the run."""

import dataclasses
import json
from pathlib import Path

from blip3o.data.mixture import MixtureEntry
from blip3o.data.sources.jsonl import JsonlConfig
from blip3o.recipes import pocket
from blip3o.runs import assemble


def test_it_reads_the_conversation_that_the_mixture_names(tmp_path: Path) -> None:
    fields = {"caption": "c", "captions": ["a caption"], "instruction": "an instruction"}
    turns = [{"from": "human", "value": "a question"}, {"from": "gpt", "value": "an answer"}]
    (tmp_path / "toy.jsonl").write_text(json.dumps({**fields, "talk": turns}) + "\n")
    source = JsonlConfig(path=str(tmp_path / "toy.jsonl"), name="toy")
    entries = [MixtureEntry(source=source, task=t) for t in ("text", "text_to_image")]
    entries[0] = dataclasses.replace(entries[0], conversation="talk")
    config = pocket.encoder()
    config = dataclasses.replace(
        config, data=dataclasses.replace(config.data, mixture=tuple(entries))
    )
    texts = [text for text in assemble._texts(config) if text.startswith("a")]
    assert texts[:4] == ["a caption", "an instruction", "a question", "an answer"]
    assert texts.count("a question") == 1


def test_it_reads_single_captions_and_skips_broken_records(tmp_path: Path) -> None:
    rows = [
        '{"caption": "a caption of its own"}',
        '{"broken',
        '{"captions": 5, "instruction": null, "conversations": {"from": "human"}}',
        '{"captions": ["a half \\ud800", 7], "conversations": ["a", {"from": "human"}]}',
    ]
    (tmp_path / "toy.jsonl").write_text("\n".join(rows), encoding="utf-8")
    source = JsonlConfig(path=str(tmp_path / "toy.jsonl"), name="toy")
    config = pocket.encoder()
    entries = (MixtureEntry(source=source, task="contrastive"),)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, mixture=entries))
    texts = [text for text in assemble._texts(config) if text.startswith("a ")]
    assert texts == ["a caption of its own", "a half "]
