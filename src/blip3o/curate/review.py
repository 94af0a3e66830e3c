"""One HTML page on which a person accepts or rejects a sample of the finished drafts.

The page needs no network and no server. Texts of drafts come from models and from the web, so they
are data to it, never markup: they travel as ASCII JSON without "<", its script makes text nodes of
them, and its content policy names the hashes of the only script and style that may act.
"""

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from blip3o.core.errors import UsageError
from blip3o.core.files import check_file, write_atomic
from blip3o.core.rng import numpy_rng
from blip3o.curate.decisions import REASONS, Z_95, finished_drafts, read_decisions
from blip3o.curate.draft import Draft, Failure
from blip3o.curate.images import ImageStore
from blip3o.imaging.encode import to_jpeg

_LARGE_PX, _SMALL_PX = 768, 256
"""Longest side of an image under review, and of a failure."""
_QUALITY = 85
_LEAST = 5
"""Cards that every category gets before shares count."""


def write_review(
    drafts: Sequence[Draft],
    images: ImageStore,
    out: Path,
    *,
    num: int,
    seed: int,
    decisions: Path | None,
) -> list[Draft]:
    """Writes a page that shows a sample of the finished drafts, and returns the sample.

    Args:
        drafts: the drafts; only finished ones count.
        images: the image files.
        out: the HTML file.
        num: number of drafts to show; all if there are fewer.
        seed: seed of the sample.
        decisions: a file of decisions that the page starts with; those about drafts outside of the
            sample are not on the page, nor in the file that it saves.

    Returns:
        The drafts in the order of the page, as `review_sample`.

    Raises:
        UsageError: if there are no finished drafts, `num` is smaller than the number of categories,
            a file cannot be read, or the page cannot be written.
    """
    check_file(out)
    known = {} if decisions is None else read_decisions(decisions)
    sample = review_sample(drafts, num=num, seed=seed)
    data = {
        "key": _key(sample),
        "z": Z_95,
        "reasons": REASONS,
        "categories": sorted(Counter(one.category for one in finished_drafts(drafts)).items()),
        "cards": [_card(one, images) for one in sample],
        "images": _image_urls(sample, images),
        "decisions": [
            vars(known[one.slot, one.image]) for one in sample if (one.slot, one.image) in known
        ],
    }
    write_atomic(out, _page(data))
    return sample


def review_sample(drafts: Sequence[Draft], *, num: int, seed: int) -> list[Draft]:
    """Returns a random sample of the finished drafts, with a share of every category.

    First every category gets five drafts in turn, then each gets its share by the method of
    Webster. So the first drafts are the sample of a smaller `num`: a review can end early or go on.

    Args:
        drafts: the drafts; only finished ones count.
        num: size of the sample; all if there are fewer.
        seed: seed of the sample. A draft keeps its place if other drafts come or go.

    Raises:
        UsageError: if there are no finished drafts, or `num` is smaller than the number of
            categories.
    """
    strata: dict[str, list[Draft]] = {}
    for one in finished_drafts(drafts):
        strata.setdefault(one.category, []).append(one)
    if not strata:
        raise UsageError("there are no finished drafts to review: all are dropped or lack an image")
    if num < len(strata):
        raise UsageError(
            f"a review of {num} drafts cannot show all {len(strata)} categories: ask for more"
        )
    for some in strata.values():
        some.sort(key=lambda one: (numpy_rng(seed, "curate/review", one.slot).random(), one.slot))
    taken = dict.fromkeys(sorted(strata), 0)
    sample: list[Draft] = []
    while len(sample) < num and (open_ := [one for one in taken if taken[one] < len(strata[one])]):
        name = min(open_, key=lambda one: _turn(taken[one], len(strata[one])))
        sample.append(strata[name][taken[name]])
        taken[name] += 1
    return sample


def _turn(num_taken: int, num_drafts: int) -> tuple[int, float]:
    """Returns the sorting key of a category; the lowest one gets the next place in the sample."""
    return min(num_taken, _LEAST), (2 * num_taken + 1) / num_drafts


def _key(sample: Iterable[Draft]) -> str:
    """Returns a hash of the sample, the name under which a browser keeps its decisions."""
    seen = [(one.slot, one.image, one.prompt) for one in sample]
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:16]


def _card(draft: Draft, images: ImageStore) -> dict[str, Any]:
    return {
        "slot": draft.slot,
        "category": draft.category,
        "prompt": draft.prompt,
        "source_prompt": draft.source_prompt,
        "source": draft.source,
        "image": draft.image,
        "scores": _score_texts(draft.scores),
        "steps": [
            {"stage": step.stage, "model": step.model, "text": step.text}
            for step in draft.steps
            if step.text
        ],
        "failures": [_failure(one, images) for one in draft.failures],
    }


def _score_texts(scores: Mapping[str, float]) -> dict[str, str]:
    """Returns readable scores; JSON has no NaN."""
    return {name: f"{value:.4g}" for name, value in scores.items()}


def _failure(failure: Failure, images: ImageStore) -> dict[str, Any]:
    try:
        url = _url(images, failure.image, _SMALL_PX)
    except UsageError:  # a damaged file may be the very reason of the failure
        url = ""
    return {
        "prompt": failure.prompt,
        "stage": failure.stage,
        "reason": failure.reason,
        "scores": _score_texts(failure.scores),
        "url": url,
    }


def _image_urls(sample: Iterable[Draft], images: ImageStore) -> dict[str, str]:
    """Returns the URL of each image by its sha256; drafts may share a source."""
    names = dict.fromkeys(name for one in sample for name in (one.source, one.image) if name)
    return {name: _url(images, name, _LARGE_PX) for name in names}


def _url(images: ImageStore, sha256: str, px: int) -> str:
    image = images.open(sha256)
    image.thumbnail((px, px))
    data = to_jpeg(image, quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"


def _page(data: Mapping[str, Any]) -> str:
    template, style, rates, actions = (
        Path(__file__).with_name(name).read_text(encoding="utf-8")
        for name in ("review.html", "review.css", "review_rates.js", "review.js")
    )
    script = rates + actions
    policy = (
        f"default-src 'none'; img-src data:; style-src {_source(style)}; "
        f"script-src {_source(script)}; base-uri 'none'; form-action 'none'"
    )
    # "<" could end the element that holds the data. All other signs are harmless there, and ASCII.
    text = json.dumps(data).replace("<", "\\u003c")
    return Template(template).substitute(policy=policy, style=style, script=script, data=text)


def _source(code: str) -> str:
    """Returns what a content policy calls a script or style with this text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'"
