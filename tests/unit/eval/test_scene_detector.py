"""The scene detector: objects that it must find, and images in which it must not name any."""

import io
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from blip3o.core.rng import numpy_rng
from blip3o.data.scenes.render import render
from blip3o.data.scenes.scene import Placed, Scene, arrange, sample_scene
from blip3o.data.scenes.things import BACKGROUNDS, COLORS, THINGS
from blip3o.eval import scene_detector as detector
from blip3o.eval.scene_detector import UNKNOWN, detect
from blip3o.eval.scene_rules import SceneDetection, WantedThing, judge_scene, same_objects

MAX_SHIFT = 0.06
Change = Callable[[Image.Image], Image.Image]


def blurred(image: Image.Image, radius: float = 0.7) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(radius))


def compressed(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return Image.open(file).convert("RGB")


def noisy(image: Image.Image) -> Image.Image:
    return make_image(np.asarray(image) + numpy_rng(0, "noise").normal(0, 4, (*image.size, 3)))


def tinted(image: Image.Image) -> Image.Image:
    return make_image(np.asarray(image) + np.array([10.0, -8.0, 6.0]))


def shifted(image: Image.Image) -> Image.Image:
    """Moves the whole image, including the background, one pixel down and to the left."""
    pixels = np.pad(np.asarray(image), ((1, 0), (0, 1), (0, 0)), mode="edge")
    return Image.fromarray(pixels[:-1, 1:])


MILD: dict[str, Change] = {
    "blur": blurred,
    "jpeg": compressed,
    "noise": noisy,
    "tint": tinted,
    "shift": shifted,
}


def make_image(pixels: NDArray[np.generic]) -> Image.Image:
    return Image.fromarray(np.clip(pixels, 0, 255).round().astype(np.uint8))


def truth_of(scene: Scene) -> list[SceneDetection]:
    return [
        SceneDetection(thing=one.thing, color=one.color, x=one.x, y=one.y, size=one.size)
        for one in scene.objects
    ]


def share_right(scenes: Sequence[Scene], change: Change | None = None, px: int = 96) -> float:
    """Returns the share of scenes whose things, colors, counts and places are all detected."""
    right = 0
    for scene in scenes:
        image = render(scene, px)
        found = detect(change(image) if change else image)
        right += same_objects(found, truth_of(scene), MAX_SHIFT)
    return right / len(scenes)


def samples(count: int, seed: int = 31) -> list[Scene]:
    """Returns scenes; half of them have compositions that are held out from training."""
    return [sample_scene(seed, k, ("val", "heldout")[k % 2]) for k in range(count)]


def single(thing: str, color: str = "red", background: str = "white", size: float = 0.36) -> Scene:
    placed = Placed(thing=thing, color=color, x=0.5, y=0.5, size=size)
    return Scene(background=background, objects=(placed,))


def wanted(scene: Scene) -> list[WantedThing]:
    counts = Counter((one.thing, one.color) for one in scene.objects)
    return [WantedThing(thing=t, color=c, count=n) for (t, c), n in counts.items()]


def accepts(image: Image.Image, scene: Scene) -> bool:
    return judge_scene(detect(image), wanted(scene), exact_count=True)


# Images whose objects must be found.


def test_everything_in_sampled_scenes_is_detected() -> None:
    assert share_right(samples(60)) >= 0.98


@pytest.mark.parametrize("name", MILD)
def test_mild_faults_of_a_decoder_are_forgiven(name: str) -> None:
    assert share_right(samples(20), MILD[name]) >= 0.95


def test_every_thing_is_recognized_in_every_color_on_many_backgrounds() -> None:
    looks = [(thing, color) for color in COLORS for thing in THINGS]
    order = numpy_rng(0, "looks").permutation(len(looks))
    rng = numpy_rng(0, "places")
    shown = Counter[str]()
    missed = []
    for k in range(0, len(looks), 4):
        four = [looks[int(j)] for j in order[k : k + 4]]
        background = BACKGROUNDS[k // 4 % len(BACKGROUNDS)]
        scene = Scene(background=background, objects=arrange(rng, four))
        shown.update(scene.background for _ in scene.objects)
        if not same_objects(detect(render(scene)), truth_of(scene), MAX_SHIFT):
            missed.append((background, four))
    assert set(shown) == set(BACKGROUNDS)
    assert not missed


@pytest.mark.parametrize("px", [64, 128, 224])
def test_other_image_sizes_give_the_same_detections(px: int) -> None:
    assert share_right(samples(12), px=px) >= 0.95


def test_places_and_sizes_are_exact_to_half_a_pixel() -> None:
    for scene in samples(10):
        found = detect(render(scene))
        for one in scene.objects:
            near = min(found, key=lambda seen: abs(seen.x - one.x) + abs(seen.y - one.y))
            assert max(abs(near.x - one.x), abs(near.y - one.y)) < 0.5 / 96
            assert abs(near.size - one.size) < 1 / 96
            assert near.score > 0.95


def test_objects_joined_by_blur_are_separated() -> None:
    row = tuple(
        Placed(thing="circle", color="purple", x=x, y=0.5, size=0.27) for x in (0.2, 0.5, 0.8)
    )
    scene = Scene(background="sunset", objects=row)
    assert same_objects(detect(blurred(render(scene), 1.1)), truth_of(scene), MAX_SHIFT)


def test_neighbors_do_not_lower_each_others_scores() -> None:
    row = tuple(
        Placed(thing="square", color="black", x=x, y=0.5, size=0.27) for x in (0.2, 0.5, 0.8)
    )
    found = detect(render(Scene(background="white", objects=row)))
    assert min(one.score for one in found) > 0.95


def test_objects_may_cover_half_of_the_background() -> None:
    spots = ((0.28, 0.26, 0.35), (0.73, 0.28, 0.41), (0.27, 0.73, 0.43), (0.75, 0.74, 0.22))
    squares = tuple(Placed(thing="square", color="yellow", x=x, y=y, size=s) for x, y, s in spots)
    scene = Scene(background="light gray", objects=squares)
    assert same_objects(detect(render(scene)), truth_of(scene), MAX_SHIFT)


def test_a_pale_spot_does_not_cut_an_object_to_pieces() -> None:
    placed = Placed(thing="pineapple", color="pink", x=0.4989, y=0.7175, size=0.4163)
    scene = Scene(background="lavender", objects=(placed,))
    assert same_objects(detect(render(scene)), truth_of(scene), MAX_SHIFT)


def test_an_object_with_pale_parts_is_found_after_a_poor_first_pose() -> None:
    clock = Placed(thing="clock", color="pink", x=0.2658, y=0.4928, size=0.4288)
    scene = Scene(background="sunset", objects=(clock,))
    assert same_objects(detect(render(scene)), truth_of(scene), MAX_SHIFT)


def test_a_plain_background_may_have_another_light_color() -> None:
    scene = single("dog", "blue")
    pixels = np.asarray(render(scene)).astype(float) * np.array([0.95, 0.8, 0.9])
    assert same_objects(detect(make_image(pixels)), truth_of(scene), MAX_SHIFT)


def test_detections_depend_only_on_the_image() -> None:
    images = [render(scene) for scene in samples(4)]
    before = [image.tobytes() for image in images]
    assert [detect(i) for i in images] == [detect(i) for i in images]
    assert [image.tobytes() for image in images] == before


# Images whose objects must not be named.


def test_nothing_is_named_in_a_blank_image_or_noise() -> None:
    rng = numpy_rng(0, "noise images")
    empty = [render(Scene(background=name, objects=())) for name in BACKGROUNDS]
    assert [detect(image) for image in empty] == [()] * len(BACKGROUNDS)
    uniform = make_image(rng.uniform(0, 255, (96, 96, 3)))
    for image in (uniform, blurred(uniform, 3), make_image(rng.normal(230, 30, (96, 96, 3)))):
        assert not accepts(image, single("cat"))
        assert all(one.thing == UNKNOWN for one in detect(image))


def one_changed(scene: Scene, *, thing: str = "", color: str = "") -> Scene:
    first, *others = scene.objects
    changed = replace(first, thing=thing or first.thing, color=color or first.color)
    return replace(scene, objects=(changed, *others))


def other(names: Sequence[str], scene: Scene, attribute: str) -> str:
    taken = {vars(one)[attribute] for one in scene.objects}
    return next(name for name in names if name not in taken)


WRONG: dict[str, Callable[[Scene], Scene]] = {
    "another thing": lambda scene: one_changed(scene, thing=other(THINGS[7:], scene, "thing")),
    "another color": lambda scene: one_changed(scene, color=other(COLORS, scene, "color")),
    "one missing": lambda scene: replace(scene, objects=scene.objects[1:]),
    "nothing": lambda scene: replace(scene, objects=()),
}


@pytest.mark.parametrize("how", WRONG)
def test_a_wrong_image_is_rejected(how: str) -> None:
    for scene in samples(8, seed=7):
        assert accepts(render(scene), scene)
        assert not accepts(render(WRONG[how](scene)), scene)


def test_one_too_many_is_a_wrong_count() -> None:
    looks = [("crab", "green")] * 4
    four = Scene(background="cream", objects=arrange(numpy_rng(0, "four"), looks))
    three = replace(four, objects=four.objects[:3])
    assert accepts(render(three), three)
    assert not accepts(render(four), three)
    assert not accepts(render(three), four)


def test_swapped_places_and_swapped_colors_are_wrong() -> None:
    cat, car = single("cat", "red").objects[0], single("car", "blue").objects[0]
    scene = Scene(background="sky", objects=(replace(cat, x=0.25), replace(car, x=0.75)))
    swapped = Scene(background="sky", objects=(replace(cat, x=0.75), replace(car, x=0.25)))
    mixed = Scene(
        background="sky",
        objects=(replace(scene.objects[0], color="blue"), replace(scene.objects[1], color="red")),
    )
    prompt = (wanted(scene), (0, "left of", 1))
    assert judge_scene(detect(render(scene)), *prompt)
    assert not judge_scene(detect(render(swapped)), *prompt)
    assert not judge_scene(detect(render(mixed)), *prompt)


def test_smeared_objects_are_unknown() -> None:
    for k, thing in enumerate(THINGS):
        scene = single(thing, COLORS[k % 8], BACKGROUNDS[k % 10], size=0.22 + 0.2 * (k % 3) / 2)
        assert {one.thing for one in detect(blurred(render(scene), 4))} <= {UNKNOWN}


def test_half_an_object_does_not_get_another_name() -> None:
    named = 0
    for thing in THINGS:
        image = render(single(thing, "green"))
        image.paste((255, 255, 255), (0, 0, 96, 48))
        named += any(one.thing != UNKNOWN for one in detect(image))
    assert named <= 0.1 * len(THINGS)


def test_other_shapes_are_unknown() -> None:
    for points in (
        [(30, 30), (45, 30), (45, 55), (66, 55), (66, 68), (30, 68)],
        [(30, 30), (66, 32), (34, 64), (64, 66)],
        [(28, 48), (40, 28), (60, 34), (52, 48), (70, 64), (38, 68)],
        [(20, 45), (76, 45), (76, 52), (20, 52)],
    ):
        image = Image.new("RGB", (96, 96), "white")
        ImageDraw.Draw(image).polygon(points, fill=(218, 20, 28), outline=(88, 0, 8))
        assert [one.thing for one in detect(image)] == [UNKNOWN]


def test_specks_are_never_things() -> None:
    for corner, size in (((40, 40), (2, 3)), ((40, 40), (6, 6)), ((0, 0), (11, 1))):
        image = Image.new("RGB", (96, 96), "white")
        image.paste(Image.new("RGB", size), corner)
        assert {one.thing for one in detect(image)} <= {UNKNOWN}


def test_a_color_between_two_is_unknown() -> None:
    for first, second in (("red", "blue"), ("yellow", "green"), ("pink", "purple")):
        one, two = (render(single("square", color)) for color in (first, second))
        (found,) = detect(Image.blend(one, two, 0.5))
        assert found.color == UNKNOWN


def test_a_stricter_detector_refuses_more(monkeypatch: pytest.MonkeyPatch) -> None:
    image = blurred(render(single("robot", "blue")), 0.7)
    for least, thing in ((0.9, "robot"), (0.999, UNKNOWN)):
        monkeypatch.setattr(detector, "_MIN_SCORE", least)
        assert detect(image)[0].thing == thing


def test_an_image_that_is_not_square_is_refused() -> None:
    with pytest.raises(ValueError, match="96x64"):
        detect(Image.new("RGB", (96, 64)))


# The sample size behind the documented accuracy of the detector.


@pytest.mark.slow
def test_everything_in_a_thousand_scenes_is_detected() -> None:
    scenes = samples(1000, seed=77)
    assert {one.thing for scene in scenes for one in scene.objects} == set(THINGS)
    assert {one.color for scene in scenes for one in scene.objects} == set(COLORS)
    assert {scene.background for scene in scenes} == set(BACKGROUNDS)
    assert share_right(scenes) >= 0.995
    for change in MILD.values():
        assert share_right(scenes, change) >= 0.98
