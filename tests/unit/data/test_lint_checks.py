"""Lint reports exactly the records that a run refuses."""

import io
import itertools
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from blip3o.cli import main
from blip3o.core.errors import UsageError
from blip3o.data import lint as module
from blip3o.data.collate import Preparer
from blip3o.data.findings import Finding, LintReport
from blip3o.data.lint import ODD, LintChecks, lint
from blip3o.data.loader import Loader
from blip3o.data.mixture import DataConfig, MixtureEntry
from blip3o.data.sources.jsonl import JsonlConfig

PX = 8
TALK = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "red"}]
ASKED = {"from": "human", "value": "What?"}
OBJECT = {"thing": "cat", "color": "red", "x": 0.5, "y": 0.5, "size": 0.1}

BAD: list[tuple[str, dict[str, Any]]] = [
    ("text_to_image", {"captions": ["", "a red square"]}),
    ("text_to_image", {"captions": ["a red square", "  "]}),
    ("text_to_image", {"captions": ["a red square", None]}),
    ("text_to_image", {"captions": ["a", "b", "c \ud83d"]}),
    ("text_to_image", {"captions": ["a", f"{'long ' * 100}"]}),
    ("text_to_image", {"captions": ["a", "<image> b"]}),
    ("text_to_image", {"caption": "a cat \ud83d"}),
    ("text_to_image", {"caption": "x", "images": ["a.png", "a.png"]}),
    ("contrastive", {"captions": ["a", ""]}),
    ("contrastive", {"caption": "a", "objects": [{**OBJECT, "x": "?"}]}),
    ("contrastive", {"caption": "a", "objects": [{**OBJECT, "x": float("nan")}]}),
    ("contrastive", {"caption": "a", "objects": [{"color": "red"}]}),
    ("image_to_text", {"captions": ["a", ""]}),
    ("image_to_text", {"conversations": [TALK[0], {"from": "gpt", "value": "<image>"}]}),
    ("image_to_text", {"conversations": [TALK[0], {"from": "gpt", "value": "\udc00"}]}),
    ("image_to_text", {"conversations": [TALK[0], {"from": "gpt", "value": "very " * 200}]}),
    ("image_to_text", {"conversations": [*TALK, *TALK]}),
    ("image_to_text", {"conversations": TALK, "image": None}),
    ("image_to_text", {"messages": [{"role": "judge", "content": "x"}]}),
    ("text", {"text_conversations": TALK}),
    ("edit", {"source": "a.png", "target": "a.png", "instruction": "\ud83d"}),
    ("edit", {"source": "a.png", "target": "a.png", "instruction": "<image>"}),
    ("edit", {"source": "a.png", "instruction": "x"}),
    ("edit", {"source": "a.png", "target": None, "instruction": "x"}),
    ("edit", {"input_image": "a.png", "output_image": "a.png", "instruction": "x"}),
    ("image_to_text", {"image": None, "video": "a.mp4", "conversations": [ASKED, TALK[1]]}),
    ("image_to_text", {"image": {"<image_00>": "a.png"}, "conversations": [ASKED, TALK[1]]}),
]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    Image.linear_gradient("L").resize((PX, PX)).save(tmp_path / "a.png")

    def write_rows(*rows: dict[str, Any]) -> str:
        file = tmp_path / "d.jsonl"
        file.write_text("".join(json.dumps({"image": "a.png", **row}) + "\n" for row in rows))
        return str(file)

    return write_rows


def refusals(path: str, task: str, preparer: Preparer) -> int:
    """Returns the number of records that a run refuses when it sees each of them many times."""
    entry = MixtureEntry(source=JsonlConfig(path=path, name="d"), task=task)
    config = DataConfig(mixture=(entry,), bad_sample_limit=1.0)
    loader = Loader(config, preparer, seed=0, global_batch_size=16, micro_batch_size=16)
    try:
        for _ in itertools.islice(loader(0), 4):
            pass
    except UsageError:  # a hundred bad records in a row
        return loader.num_bad or 1
    return loader.num_bad


@pytest.mark.parametrize(("task", "fields"), BAD)
@pytest.mark.parametrize("is_given", [True, False])
def test_lint_reports_the_records_that_a_run_refuses(
    write: Callable[..., str],
    preparer: Preparer,
    task: str,
    fields: dict[str, Any],
    is_given: bool,
) -> None:
    path = write(fields)
    assert refusals(path, task, preparer)
    tasks = (task,) if is_given or task == "contrastive" else ()
    report = lint([path], LintChecks(tasks=tasks, min_px=1, preparer=preparer))
    assert not report.is_clean
    assert report.num_bad == 1


GOOD: list[tuple[str, dict[str, Any]]] = [
    ("text_to_image", {"captions": ["a", "b"], "caption": ""}),
    ("text_to_image", {"text": "a", "source": "coco"}),
    ("image_to_text", {"conversations": TALK, "text": ["anything"], "prompt": 3}),
    ("image_to_text", {"conversations": TALK[1:] + TALK}),
    ("image_to_text", {"messages": TALK, "image": ["a.png"]}),
    ("image_to_text", {"conversations": [{"from": "human", "value": "Hi"}, TALK[1]], "image": ""}),
    ("edit", {"image": None, "source": "a.png", "target": "a.png", "instruction": "x"}),
    ("contrastive", {"caption": "a", "objects": [OBJECT]}),
]


@pytest.mark.parametrize(("task", "fields"), GOOD)
def test_lint_is_clean_where_a_run_uses_everything(
    write: Callable[..., str], preparer: Preparer, task: str, fields: dict[str, Any]
) -> None:
    path = write(fields)
    assert refusals(path, task, preparer) == 0
    for tasks in ((task,), ()):
        assert lint([path], LintChecks(tasks=tasks, min_px=1, preparer=preparer)).findings == []


def test_the_token_limit_is_an_option(
    write: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write({"caption": "a red square on a white background, " * 30})
    base = ["data", "lint", path, "--jobs", "1", "--min-px", "1"]
    assert main(base) == 0
    assert "1080 characters: --max-tokens N" in capsys.readouterr().out
    assert main([*base, "--max-tokens", "64"]) == 1
    assert "tokens are more than 64" in capsys.readouterr().out
    assert main([*base, "--max-tokens", "2000"]) == 0
    with pytest.raises(SystemExit) as refused:
        main([*base, "--max-tokens", "0"])
    assert refused.value.code == 2
    assert main([*base, "--max-tokens", "64", "--model", "nowhere/at/all"]) == 2


def test_another_field_and_drawn_questions_are_checked(write: Callable[..., str]) -> None:
    path = write({"drills": [TALK[0], TALK[1], TALK[1]], "caption": "x"})
    tasks = ("image_to_text",)
    assert lint([path], LintChecks(tasks=tasks, min_px=1)).is_clean
    assert lint([path], LintChecks(tasks=tasks, min_px=1, conversation="drills")).is_clean
    assert not lint(
        [path], LintChecks(tasks=tasks, min_px=1, conversation="drills", max_turns=2)
    ).is_clean
    assert not lint([path], LintChecks(tasks=tasks, min_px=1, conversation="nothing")).is_clean


@pytest.mark.parametrize("error", [TypeError("odd"), MemoryError(), RecursionError(), KeyError(3)])
def test_an_error_in_one_record_does_not_hide_others(
    write: Callable[..., str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    path = write({"caption": "one"}, {"caption": ""}, {"caption": "three"})

    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(module, "_oddities", fail)
        report = lint([path], LintChecks(min_px=1))
    assert {one.problem for one in report.findings} == {"unexpected error"}
    assert len(report.findings) == 3


def save(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


RAMP = np.linspace(0, 65535, 80 * 80).reshape(80, 80).astype(np.uint16)


@pytest.mark.parametrize(
    ("image", "kind", "colors"),
    [
        (Image.fromarray(RAMP), "PNG", "I;16"),
        (Image.fromarray(RAMP), "TIFF", "1 x 16 bits"),
        (Image.linear_gradient("L").convert("LAB"), "TIFF", "LAB"),
        (Image.linear_gradient("L").convert("CMYK"), "JPEG", "CMYK"),
        (Image.linear_gradient("L").convert("P"), "GIF", ""),
        (Image.linear_gradient("L").convert("1"), "PNG", ""),
        (Image.linear_gradient("L").convert("LA"), "PNG", "transparent"),
    ],
)
def test_the_image_that_reading_returns_is_checked(
    tmp_path: Path, image: Image.Image, kind: str, colors: str
) -> None:
    ending = {"JPEG": "jpg", "TIFF": "tif"}.get(kind, kind.lower())
    (tmp_path / f"a.{ending}").write_bytes(save(image, kind))
    (tmp_path / "a.txt").write_text("a ramp")
    odd = [one.detail for one in lint([str(tmp_path)], LintChecks(min_px=1)).findings]
    assert not any("one color" in one or "cannot be judged" in one for one in odd)
    assert any(colors in one for one in odd) or not colors


@pytest.mark.parametrize("make", [lambda d: d, lambda d: d + b"\0" * 40])
def test_files_with_several_frames_are_reported_except_photos_of_phones(
    tmp_path: Path, make: Callable[[bytes], bytes]
) -> None:
    frames = [Image.linear_gradient("L").rotate(turn) for turn in (0, 90)]
    for kind, ending in (("GIF", "gif"), ("MPO", "jpg"), ("PNG", "png")):
        buffer = io.BytesIO()
        frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
        (tmp_path / f"{kind}.{ending}").write_bytes(make(buffer.getvalue()))
        (tmp_path / f"{kind}.txt").write_text("a ramp")
    odd = {one.key: one.detail for one in lint([str(tmp_path)], LintChecks(min_px=1)).findings}
    assert odd.keys() == {"GIF.gif", "PNG.png"}
    assert all("the first of 2" in one for one in odd.values())


def test_chunks_that_are_not_read_give_no_finding(tmp_path: Path) -> None:
    data = save(Image.linear_gradient("L"), "PNG")
    for number, chunk in enumerate((b"tEXt", b"zTXt", b"tRNS")):
        bad = struct.pack(">I", 5) + chunk + b"a\0bcd" + b"\1\2\3\4"  # its checksum is wrong
        (tmp_path / f"{number}.png").write_bytes(data[:33] + bad + data[33:])
        (tmp_path / f"{number}.txt").write_text("a ramp")
    assert lint([str(tmp_path)], LintChecks(min_px=1)).findings == []


def test_the_summary_fits_a_screen_and_names_the_option_for_the_rest(tmp_path: Path) -> None:
    def finding(number: int, problem: str) -> Finding:
        return Finding(
            source="s", key=f"k{number}", position=number, problem=problem, detail="x" * 999
        )

    findings = [finding(k, problem) for k in range(300) for problem in ("broken", ODD)]
    report = LintReport(num_records=400, findings=findings, passed_over={"s": {"no image": 3}})
    lines = report.text().splitlines()
    assert lines[0] == "400 records, 300 bad; 600 findings"
    assert len(lines) < 24
    assert max(map(len, lines)) < 260
    assert "k0" in lines[1] and "k4" in lines[5] and "and 295 more" in lines[6]  # noqa: PT018
    assert "       3  passed over: s: no image" in lines
    assert lines[-1] == "--out FILE writes all of them"
    report = LintReport(num_records=1, findings=[], file=tmp_path / "f.jsonl")
    assert report.text() == f"1 records, 0 bad; nothing found\nall findings: {tmp_path}/f.jsonl"


@pytest.mark.parametrize("text", ["", "\n\n", "[]"])
def test_a_list_without_records_is_not_clean(tmp_path: Path, text: str) -> None:
    (tmp_path / "d.jsonl").write_text(text)
    (finding,) = lint([f"{tmp_path}/d.jsonl"], LintChecks()).findings
    assert finding.problem == "empty"
    assert not lint([f"{tmp_path}/d.jsonl"], LintChecks()).is_clean


def test_a_reason_common_to_all_captions_is_reported_once(write: Callable[..., str]) -> None:
    path = write({"image": ["a.png", "a.png"], "captions": ["x", "y"]}, {"captions": ["x", "", ""]})
    details = [one.detail for one in lint([path], LintChecks(min_px=1)).findings]
    assert details[0].startswith("the record has several images")
    assert details[1].startswith("caption 2, 3 of 3: ")


def test_repeated_ids_of_a_list_are_named_and_harmless(write: Callable[..., str]) -> None:
    report = lint(
        [write({"id": 1, "caption": "x"}, {"id": 1, "caption": "y"})], LintChecks(min_px=1)
    )
    assert [one.problem for one in report.findings] == ["repeated id"]
    assert report.is_clean
    assert report.num_bad == 0
