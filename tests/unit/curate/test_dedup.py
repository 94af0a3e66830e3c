"""Of drafts that repeat each other, the one with the lowest slot stays."""

import io
import sys
from collections.abc import Callable

import pytest
from PIL import Image

from blip3o.core.config import from_dict
from blip3o.core.errors import UsageError
from blip3o.curate.desk import Desk
from blip3o.curate.draft import Draft
from blip3o.curate.stages.dedup import DedupStage

Scene = Callable[[int], Image.Image]
Recompress = Callable[[Image.Image, int], Image.Image]
LONG = "a red car next to a tall tree on a sunny day in the old town"


def draft(slot: int, prompt: str = "", **fields: str) -> Draft:
    return Draft(slot=slot, category="c", prompt=prompt, **fields)  # type: ignore[arg-type]


def kept(desk: Desk, drafts: list[Draft], **settings: object) -> list[int]:
    after = from_dict(DedupStage, settings).run(drafts, desk)
    assert [one.slot for one in after] == [one.slot for one in drafts]
    return [one.slot for one in after if not one.dropped]


def stored(desk: Desk, image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return desk.images.add(buffer.getvalue())


def test_the_lowest_slot_stays_and_is_named(desk: Desk) -> None:
    drafts = [draft(20, f"{LONG}!"), draft(12, LONG), draft(31, LONG.replace("old", "new"))]
    after = DedupStage().run(drafts, desk)
    assert [one.dropped for one in after] == [
        "text repeats 00000012 (1.00)",
        "",
        "text repeats 00000012 (0.76)",
    ]
    assert after[0].dropped_by == "stage"
    assert kept(desk, drafts, text=0.8) == [12, 31]
    assert kept(desk, drafts, text=None) == [20, 12, 31]


def test_dropped_drafts_do_not_take_part(desk: Desk, scene: Scene) -> None:
    gone = draft(0, LONG).drop("judge", "it is bad")
    drafts = [gone, draft(1, LONG), draft(2, LONG)]
    assert DedupStage().run(drafts, desk)[0] == gone
    assert kept(desk, drafts) == [1]
    image = stored(desk, scene(0))
    gone = draft(0, "one", image=image).drop("judge", "it is bad")
    assert kept(desk, [gone, draft(1, "two", image=image)]) == [1]


def test_each_dropped_one_repeats_a_kept_one(desk: Desk) -> None:
    chain = [draft(0, "a b c d e f"), draft(1, "b c d e f g"), draft(2, "c d e f g h")]
    assert kept(desk, chain, text=0.6) == [0, 2]


def test_images_that_look_the_same_are_repeats(
    desk: Desk, scene: Scene, recompressed: Recompress
) -> None:
    drafts = [
        draft(0, "one", image=stored(desk, scene(0))),
        draft(1, "two", image=stored(desk, scene(1))),
        draft(2, "three", image=stored(desk, recompressed(scene(0), 40))),
    ]
    after = DedupStage().run(drafts, desk)
    assert after[2].dropped.startswith("image repeats 00000000 (")
    assert kept(desk, drafts) == [0, 1]
    assert kept(desk, drafts, image=None) == [0, 1, 2]


def test_what_an_image_drops_does_not_drop_others_by_its_text(desk: Desk, scene: Scene) -> None:
    image = stored(desk, scene(0))
    drafts = [draft(0, "one", image=image), draft(1, LONG, image=image), draft(2, LONG)]
    assert kept(desk, drafts) == [0, 2]


def test_edits_of_different_images_may_have_one_instruction(desk: Desk) -> None:
    one, two = "a" * 64, "b" * 64
    assert kept(desk, [draft(0, "remove it", source=one), draft(1, "remove it", source=two)]) == [
        0,
        1,
    ]
    assert kept(desk, [draft(0, "remove it", source=one), draft(1, "remove it", source=one)]) == [0]
    scenes = [draft(0, "remove it", source_prompt=LONG), draft(1, "remove it", source_prompt="x")]
    assert kept(desk, scenes) == [0, 1]
    alike = [draft(0, "remove it", source_prompt=LONG, source=one)]
    alike += [draft(1, "remove it", source_prompt=LONG, source=two)]
    assert kept(desk, alike) == [0]


def test_drafts_without_texts_and_images_are_no_repeats(desk: Desk) -> None:
    assert kept(desk, [draft(0), draft(1)]) == [0, 1]


def test_the_result_does_not_depend_on_the_order(desk: Desk) -> None:
    drafts = [draft(slot, f"{LONG} {slot % 3} {slot % 5} in {slot % 7}") for slot in range(60)]
    assert sorted(kept(desk, drafts)) == sorted(kept(desk, drafts[::-1]))


def test_a_missing_library_says_what_to_install(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "imagehash", None)
    with pytest.raises(UsageError, match=r"pip install 'blip3o\[curate\]'"):
        kept(desk, [])
    assert kept(desk, [draft(0, LONG)], image=None) == [0]


@pytest.mark.parametrize("settings", [{"text": 0}, {"image": 40}, {"run_words": 0}])
def test_limits_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(settings))):
        from_dict(DedupStage, settings)
