"""The sample and the page of a review, and the stage that applies the decisions."""

import dataclasses
import hashlib
import io
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from blip3o.core.config import from_dict
from blip3o.core.errors import UsageError
from blip3o.curate.decisions import Decision
from blip3o.curate.desk import Desk
from blip3o.curate.draft import Draft, Failure, Step
from blip3o.curate.images import ImageStore
from blip3o.curate.review import review_sample, write_review
from blip3o.curate.stages import STAGES
from blip3o.curate.stages.review import ReviewStage

EVIL = '</script><script>alert(1)</script><!-- "quoted" \u202e\ud800 & $data'


@pytest.fixture
def images(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "images")


def add_image(images: ImageStore, color: str, px: int = 16) -> str:
    file = io.BytesIO()
    Image.new("RGB", (px, px), color).save(file, "PNG")
    return images.add(file.getvalue())


def drafts(image: str, **sizes: int) -> list[Draft]:
    """Returns finished drafts of categories with these sizes."""
    categories = [name for name, size in sizes.items() for _ in range(size)]
    return [
        Draft(slot=slot, category=name, prompt=f"moat {slot}", image=image)
        for slot, name in enumerate(categories)
    ]


def page_data(file: Path) -> dict[str, Any]:
    page = file.read_text(encoding="ascii")
    (data,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', page)
    return json.loads(data)


# ---- Sample


def shares(num: int, **sizes: int) -> dict[str, int]:
    return Counter(one.category for one in review_sample(drafts("0", **sizes), num=num, seed=1))


def test_every_category_gets_its_share_and_at_least_some() -> None:
    assert shares(100, few=3, many=900, some=100) == {"few": 3, "many": 87, "some": 10}
    assert shares(3, few=3, many=900, some=100) == {"few": 1, "many": 1, "some": 1}
    assert shares(12, few=3, many=900, some=100) == {"few": 3, "many": 5, "some": 4}
    assert shares(5000, few=3, many=90) == {"few": 3, "many": 90}


def test_a_larger_sample_begins_with_the_smaller_one() -> None:
    some = drafts("0", few=3, many=90, some=20)
    whole = [one.slot for one in review_sample(some, num=200, seed=1)]
    assert sorted(whole) == [*range(113)]
    for num in range(3, 113):
        assert [one.slot for one in review_sample(some, num=num, seed=1)] == whole[:num]


def test_the_seed_decides_about_the_sample_and_other_drafts_do_not() -> None:
    some = drafts("0", a=400)
    slots = [
        {one.slot for one in review_sample(given, num=40, seed=seed)}
        for given, seed in ((some, 1), (some, 1), (some, 2), (some[:-40], 1))
    ]
    assert slots[0] == slots[1]
    assert len(slots[0] & slots[2]) < 15
    assert len(slots[0] & slots[3]) >= 30


def test_only_finished_drafts_are_shown() -> None:
    some = drafts("0", a=3)
    some[0] = some[0].drop("judge", "no moat")
    some[1] = some[1].reject_image("judge", "no moat")
    assert [one.slot for one in review_sample(some, num=9, seed=0)] == [2]
    with pytest.raises(UsageError, match="there are no finished drafts to review"):
        review_sample(some[:2], num=9, seed=0)
    with pytest.raises(UsageError, match="a review of 1 drafts cannot show all 2 categories"):
        review_sample(drafts("0", a=3, b=3), num=1, seed=0)


# ---- Page


def test_texts_cannot_leave_the_data_of_the_page(images: ImageStore, tmp_path: Path) -> None:
    image = add_image(images, "red")
    draft = Draft(
        slot=0,
        category=EVIL,
        prompt=EVIL,
        source_prompt=EVIL,
        source=image,
        image=image,
        scores={EVIL: float("nan")},
        failures=(Failure(image=image, prompt=EVIL, stage=EVIL, reason=EVIL),),
        steps=(Step(stage=EVIL, model=EVIL, text=EVIL),),
    )
    out = tmp_path / "review.html"
    write_review([draft], images, out, num=1, seed=0, decisions=None)
    page = out.read_text(encoding="ascii")  # so it holds no marks of direction
    assert page.count("</script>") == 2
    assert "<!--" not in page
    (card,) = page_data(out)["cards"]
    assert card["prompt"] == card["steps"][0]["model"] == card["failures"][0]["reason"] == EVIL
    assert card["scores"] == {EVIL: "nan"}


def test_the_page_requests_nothing(images: ImageStore, tmp_path: Path) -> None:
    out = tmp_path / "review.html"
    write_review(drafts(add_image(images, "red"), a=2), images, out, num=2, seed=0, decisions=None)
    page = out.read_text(encoding="ascii")
    assert "://" not in page
    (policy,) = re.findall(r'Security-Policy" content="(.*?)"', page)
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy


def test_images_are_scaled_down_and_kept_once(images: ImageStore, tmp_path: Path) -> None:
    source, image = add_image(images, "red", px=1000), add_image(images, "blue")
    some = [dataclasses.replace(one, source=source) for one in drafts(image, a=3)]
    out = tmp_path / "review.html"
    write_review(some, images, out, num=3, seed=0, decisions=None)
    assert list(page_data(out)["images"]) == [source, image]
    (tmp_path / "again").mkdir()
    write_review(some, images, tmp_path / "again" / "a.html", num=3, seed=0, decisions=None)
    assert (tmp_path / "again" / "a.html").read_bytes() == out.read_bytes()


def test_a_failure_may_lack_its_file_but_an_image_may_not(
    images: ImageStore, tmp_path: Path
) -> None:
    image, text = add_image(images, "red"), images.add(b"no image")
    (draft,) = drafts(image, a=1)
    failure = Failure(image=text, prompt="a moat", stage="filter", reason="no image")
    out = tmp_path / "review.html"
    some = [dataclasses.replace(draft, failures=(failure,))]
    write_review(some, images, out, num=1, seed=0, decisions=None)
    assert page_data(out)["cards"][0]["failures"][0]["url"] == ""
    some = [dataclasses.replace(draft, image=text)]
    with pytest.raises(UsageError):
        write_review(some, images, out, num=1, seed=0, decisions=None)


def test_the_page_starts_with_the_decisions_about_its_images(
    images: ImageStore, tmp_path: Path
) -> None:
    image = add_image(images, "red")
    decisions = tmp_path / "decisions.jsonl"
    write_decisions(decisions, (0, image, "accept"), (1, "0" * 64, "accept"))
    out = tmp_path / "review.html"
    write_review(drafts(image, a=2), images, out, num=2, seed=0, decisions=decisions)
    assert [one["slot"] for one in page_data(out)["decisions"]] == [0]


# ---- Stage


def write_decisions(file: Path, *decisions: tuple[int, str, Any], reason: str = "") -> None:
    lines = [
        Decision(slot=slot, image=image, decision=decision, reason=reason)
        for slot, image, decision in decisions
    ]
    file.write_text("".join(json.dumps(dataclasses.asdict(one)) + "\n" for one in lines))


@pytest.fixture
def desk(images: ImageStore) -> Desk:
    return Desk(stage="final review", seed=0, images=images, models={})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "decisions.jsonl"


def test_rejected_drafts_are_dropped_and_accepted_ones_noted(desk: Desk, file: Path) -> None:
    image = "a" * 64
    some = drafts(image, a=4)
    some[3] = some[3].drop("judge", "no moat")
    write_decisions(file, (0, image, "accept"), (1, image, "reject"), (3, image, "reject"))
    found = ReviewStage(decisions=str(file)).run(some, desk)
    assert [one.dropped for one in found] == ["", "rejected by a reviewer", "", "no moat"]
    assert [one.dropped_by for one in found] == ["", "final review", "", "judge"]
    step = Step(stage="final review", text="accepted by a reviewer")
    assert found[0] == some[0].noted(step)
    assert found[2:] == some[2:]
    write_decisions(file, (1, image, "reject"), reason="text errors")
    found = ReviewStage(decisions=str(file)).run(some, desk)
    assert found[1].dropped == "rejected by a reviewer: text errors"


def test_decisions_about_other_images_do_not_count(
    desk: Desk, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    some = drafts("a" * 64, a=2)
    write_decisions(file, (0, "b" * 64, "reject"), (1, "a" * 64, "accept"), (7, "a" * 64, "reject"))
    found = ReviewStage(decisions=str(file)).run(some, desk)
    assert [one.dropped for one in found] == ["", ""]
    assert "final review: 2 decisions are about another image" in capsys.readouterr().err


def test_without_decisions_all_drafts_pass(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    some = drafts("a" * 64, a=2)
    assert ReviewStage(most_defects=0.0).run(some, desk) == some
    assert "most_defects is not checked" in capsys.readouterr().err
    assert ReviewStage().fingerprint() == ""


def test_too_many_defects_stop_the_run(desk: Desk, file: Path) -> None:
    image = "a" * 64
    some = drafts(image, few=2, many=90)
    write_decisions(
        file,
        *((slot, image, "reject") for slot in range(2)),
        *((slot, image, "reject" if slot == 2 else "accept") for slot in range(2, 42)),
    )
    message = (
        r"category 'many' may have more than 10\.0% defects: 1 of 40 reviewed drafts are rejected, "
        r"2\.5% \(95 % interval 0\.4% to 12\.9%\); review more"
    )
    with pytest.raises(UsageError, match=message):
        ReviewStage(decisions=str(file), most_defects=0.1).run(some, desk)
    # All defects of "few" are known, and dropped.
    found = ReviewStage(decisions=str(file), most_defects=0.13).run(some, desk)
    assert sum(bool(one.dropped) for one in found) == 3


def test_a_category_that_nobody_has_reviewed_stops_the_run(desk: Desk, file: Path) -> None:
    image = "a" * 64
    write_decisions(file, (0, image, "accept"))
    message = r"'b' may have more than 50\.0% defects \(and so may 1 more\): no draft is reviewed"
    stage = ReviewStage(decisions=str(file), most_defects=0.5)
    with pytest.raises(UsageError, match=message):
        stage.run(drafts(image, a=2, b=2), desk)


def test_the_fingerprint_is_the_hash_of_the_decisions(file: Path) -> None:
    stage = ReviewStage(decisions=str(file))
    with pytest.raises(UsageError, match=r"cannot read decisions from .*no such file"):
        stage.fingerprint()
    write_decisions(file, (0, "a" * 64, "accept"))
    assert stage.fingerprint() == hashlib.sha256(file.read_bytes()).hexdigest()


def test_settings(tmp_path: Path) -> None:
    assert STAGES.get("review") is ReviewStage
    stage = from_dict(ReviewStage, {"decisions": "~/a.jsonl", "most_defects": 0.05})
    assert stage.most_defects == 0.05
    with pytest.raises(UsageError, match="most_defects must be from 0 to 1"):
        from_dict(ReviewStage, {"most_defects": 5})
