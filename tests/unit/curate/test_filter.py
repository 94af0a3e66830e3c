"""Texts and images whose scores are out of bounds do not pass."""

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from blip3o.core.config import from_dict
from blip3o.core.errors import UsageError
from blip3o.curate.desk import Desk
from blip3o.curate.draft import Draft
from blip3o.curate.stages.filter import FilterStage, text_scores

Scene = Callable[[int], Image.Image]


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def run(desk: Desk, draft: Draft, **settings: object) -> Draft:
    [after] = from_dict(FilterStage, settings).run([draft], desk)
    return after


def test_texts_are_measured_in_words_and_characters() -> None:
    assert text_scores(" a red car, at night! ") == {"words": 5, "characters": 20}


def test_a_text_out_of_bounds_drops_the_draft(desk: Desk, scene: Scene) -> None:
    image = desk.images.add(encoded(scene(0)))
    draft = Draft(slot=0, category="c", prompt="a red car", image=image)
    for limits, reason in (
        ({"least": {"words": 4}}, "words 3 is below 4"),
        ({"most": {"characters": 8}}, "characters 9 is above 8"),
    ):
        after = run(desk, draft, **limits)
        assert (after.dropped, after.dropped_by) == (reason, "stage")
        assert after.image == image, "the text is to blame, not the image"
    after = run(desk, draft, least={"words": 3}, most={"characters": 9})
    assert not after.dropped


def test_an_image_out_of_bounds_is_rejected_with_its_scores(desk: Desk, scene: Scene) -> None:
    image = desk.images.add(encoded(scene(0)))
    draft = Draft(slot=0, category="c", prompt="a red car", image=image)
    after = run(desk, draft, least={"short_px": 256, "spread": 100}, most={"aspect": 2})
    assert (after.dropped, after.image) == ("", "")
    [failure] = after.failures
    assert failure.reason.startswith("short_px 192 is below 256; spread ")
    assert (failure.image, failure.stage) == (image, "stage")
    assert failure.scores["short_px"] == 192
    assert failure.scores["words"] == 3


def test_scores_of_what_passes_are_kept(desk: Desk, scene: Scene) -> None:
    image = desk.images.add(encoded(scene(0)))
    after = run(desk, Draft(slot=0, category="c", prompt="a car", image=image))
    assert after.image == image
    assert {"words", "characters", "short_px", "cast"} < after.scores.keys()
    assert "changed" not in after.scores


def test_drafts_without_an_image_are_judged_by_their_text_only(desk: Desk) -> None:
    draft = Draft(slot=0, category="c", prompt="a car")
    after = run(desk, draft, least={"short_px": 256, "words": 1}, most={"changed": 0.5})
    assert (after.dropped, after.failures) == ("", ())


def test_dropped_drafts_pass_unchanged(desk: Desk) -> None:
    draft = Draft(slot=0, category="c", prompt="a car").drop("judge", "it is bad")
    assert run(desk, draft, least={"words": 9}) == draft


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_truncated_file_is_rejected(desk: Desk, scene: Scene, kind: str) -> None:
    data = encoded(scene(0), kind)
    for bad in (data[: len(data) // 2], b"not an image"):
        after = run(desk, Draft(slot=0, category="c", prompt="x", image=desk.images.add(bad)))
        assert (after.dropped, after.image) == ("", "")
        assert "the image is" in after.failures[0].reason


def test_a_file_that_is_gone_is_no_fault_of_the_image(desk: Desk) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        run(desk, Draft(slot=0, category="c", prompt="x", image="0" * 64))


def test_an_edit_must_change_something_and_not_everything(desk: Desk, scene: Scene) -> None:
    edited = scene(0)
    edited.paste((250, 20, 20), (50, 50, 150, 150))
    source = desk.images.add(encoded(scene(0)))
    limits = {"least": {"changed": 0.02}, "most": {"changed": 0.7}}
    for image, reason in (
        (edited, None),
        (scene(0).resize((128, 96)), "changed 0 is below 0.02"),
        (scene(9), "is above 0.7"),
    ):
        sha256 = desk.images.add(encoded(image))
        draft = Draft(slot=0, category="c", prompt="x", image=sha256, source=source)
        after = run(desk, draft, **limits)
        assert (reason is None) == bool(after.image)
        assert reason is None or reason in after.failures[0].reason
    alone = Draft(slot=0, category="c", prompt="x", image=source)
    assert run(desk, alone, **limits).image == source


def test_an_unknown_score_is_refused_before_the_run() -> None:
    with pytest.raises(UsageError, match=r"unknown score 'sprad'; did you mean spread.*short_px"):
        from_dict(FilterStage, {"least": {"sprad": 8}})


def test_columns_of_score_files_are_scores(desk: Desk, scene: Scene, tmp_path: Path) -> None:
    image = desk.images.add(encoded(scene(0)))
    file = tmp_path / "scores.jsonl"
    rows = [{"id": "00000000", "perplexity": 30}, {"image": image, "aesthetic_score": 4.5}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    draft = Draft(slot=0, category="c", prompt="x", image=image)

    def judged(one: Draft, **limits: dict[str, float]) -> Draft:
        return run(desk, one, score_files=[str(file)], **limits)

    passed = judged(draft, least={"aesthetic_score": 4}, most={"perplexity": 40})
    assert (passed.scores["aesthetic_score"], passed.scores["perplexity"]) == (4.5, 30)
    assert judged(draft, most={"perplexity": 20}).dropped == "perplexity 30 is above 20"
    rejected = judged(draft, least={"aesthetic_score": 5})
    assert rejected.failures[0].reason == "aesthetic_score 4.5 is below 5"
    assert rejected.failures[0].scores["aesthetic_score"] == 4.5
    with pytest.raises(UsageError, match="unknown score 'aesthetics'; did you mean aesthetic_scor"):
        judged(draft, least={"aesthetics": 5})


def test_a_draft_or_image_without_a_needed_row_fails(
    desk: Desk, scene: Scene, tmp_path: Path
) -> None:
    image = desk.images.add(encoded(scene(0)))
    file = tmp_path / "scores.jsonl"
    file.write_text(
        '{"id": "00000007", "perplexity": 3}\n'
        f'{{"id": "{"0" * 64}", "aesthetic_score": 9, "blur": 1}}\n'
    )
    draft = Draft(slot=0, category="c", prompt="x", image=image)
    texts = run(desk, draft, most={"perplexity": 9}, score_files=[str(file)])
    assert texts.dropped == "the score files have no perplexity of it"
    images = run(desk, draft, least={"aesthetic_score": 1}, score_files=[str(file)])
    assert images.failures[0].reason == "the score files have no aesthetic_score of it"


def test_the_fingerprint_is_that_of_the_score_files(tmp_path: Path) -> None:
    file = tmp_path / "scores.jsonl"
    assert FilterStage().fingerprint() == ""
    stage = FilterStage(score_files=(str(file),))
    with pytest.raises(UsageError, match="no such score file"):
        stage.fingerprint()
    file.write_text('{"id": "00000007", "perplexity": 3}\n')
    first = stage.fingerprint()
    file.write_text('{"id": "00000007", "perplexity": 4}\n')
    assert len({first, stage.fingerprint(), hashlib.sha256(b"").hexdigest()}) == 3
