"""`blip3o data decontaminate`: records of all forms, the report, and clean shards."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from blip3o.cli import main
from blip3o.core.errors import UsageError
from blip3o.curate.decontaminate import benchmark_prompts, decontaminate, texts_of
from blip3o.data.sources.webdataset import WebDatasetConfig
from blip3o.eval import BENCHMARKS
from blip3o.eval.imgedit import ImgEditBenchmark
from blip3o.eval.prompt_files import PromptFile

RECORDS: list[dict[str, Any]] = [
    {"caption": "a castle at night"},
    {"caption": "There is a cow."},
    {"captions": ["a castle", "a picture of one purple pizza"]},
    {"instruction": "draw four dogs"},
    {"conversations": [{"from": "human", "value": "a bench"}, {"from": "gpt", "value": "a cow"}]},
    {
        "messages": [
            {"role": "user", "content": "a moat"},
            {"role": "assistant", "content": "a cow"},
        ]
    },
]
"""The second to the fifth ask for prompts of GenEval."""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in RECORDS), encoding="utf-8")
    return file


def test_texts_that_may_be_prompts() -> None:
    assert [texts_of(one) for one in RECORDS] == [
        ["a castle at night"],
        ["There is a cow."],
        ["a castle", "a picture of one purple pizza"],
        ["draw four dogs"],
        ["a bench"],
        ["a moat"],
    ]
    assert texts_of({"caption": 3, "conversations": [7]}) == []


@pytest.mark.parametrize("jobs", [1, 2])
def test_report(data: Path, tmp_path: Path, jobs: int) -> None:
    report = decontaminate([str(data)], jobs=jobs, out=tmp_path / "found.jsonl")
    assert [one.position for one in report.found] == [1, 2, 3, 4]
    assert (report.num_records, report.num_texts, report.is_clean) == (6, 7, False)
    lines = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    assert lines[1]["prompt"] == "a photo of a purple pizza"
    assert (lines[1]["benchmark"], lines[1]["kind"]) == ("geneval", "meaning")
    assert "4 records repeat one" in report.text()


def test_command(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["data", "decontaminate", str(data), "--jobs", "1"]
    assert main(arguments) == 1
    assert "geneval, meaning" in capsys.readouterr().out
    assert main([*arguments, "--against", "nothing"]) == 2
    assert "nothing" in capsys.readouterr().err
    (tmp_path / "list.txt").write_text("a large castle\n", encoding="utf-8")
    assert main([*arguments, "--against", f"list={tmp_path / 'list.txt'}"]) == 0
    assert "1 prompt of list" in capsys.readouterr().out


def test_clean_shards_hold_the_other_records(shards_of_captions: Path, tmp_path: Path) -> None:
    arguments = ["data", "decontaminate", f"{shards_of_captions}/*.tar", "--jobs", "1"]
    clean = tmp_path / "clean"
    assert main([*arguments, "--clean", str(clean)]) == 0
    assert main([f"{clean}/*.tar" if one.endswith(".tar") else one for one in arguments]) == 0
    source = WebDatasetConfig(path=f"{clean}/*.tar", name="clean").build()
    captions = [source.read(position)[2]["caption"] for position in range(len(source))]
    assert captions == ["a castle at night", "a moat"]
    (note,) = clean.glob("*.skipped.jsonl")
    assert "repeats a prompt of geneval (meaning): a photo of a cow" in note.read_text()


def test_other_prompts_do_not_reuse_clean_shards(shards_of_captions: Path, tmp_path: Path) -> None:
    arguments = ["data", "decontaminate", f"{shards_of_captions}/*.tar", "--jobs", "1"]
    arguments += ["--clean", str(tmp_path / "clean")]
    assert main(arguments) == 0
    assert main([*arguments, "--against", "dpg"]) == 2


@pytest.mark.parametrize("name", ["geneval", "dpg", "t2i_compbench", "scenes"])
def test_benchmarks_state_their_prompts_without_further_files(name: str) -> None:
    prompts = benchmark_prompts([name])
    assert len(prompts) >= 553
    assert all(prompt.benchmark == name for prompt in prompts)


@pytest.mark.parametrize("name", ["wise", "wise_verified", "imgedit", "gedit", "geneval2"])
def test_other_benchmarks_name_their_origin(name: str) -> None:
    with pytest.raises(UsageError, match=r"github\.com|stepfun-ai"):
        benchmark_prompts([name])
    assert BENCHMARKS.get(name).prompts_setting in BENCHMARKS.get(name).__dataclass_fields__


def test_a_users_copy_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "basic_edit.json"
    file.write_text('{"1": {"prompt": "remove the cow", "id": "a.png"}}', encoding="utf-8")
    with pytest.raises(UsageError, match=r"is not the published basic_edit\.json"):
        benchmark_prompts([f"imgedit={file}"])
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    published = PromptFile(name="basic_edit.json", sha256=sha256)
    monkeypatch.setattr(ImgEditBenchmark, "file", published)
    assert [one.text for one in benchmark_prompts([f"imgedit={file}"])] == ["remove the cow"]
