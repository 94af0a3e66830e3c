"""The facts of the two versions of WISE: categories, weights, criteria, files."""

import dataclasses
from collections.abc import Mapping

from blip3o.eval.prompt_files import PromptFile

NUM_PROMPTS = 1000


@dataclasses.dataclass(frozen=True)
class Category:
    """A category: a range of prompt ids.

    Args:
        first: its first id.
        last: its last id.
        weight: its weight in the overall score.
        part: name of the part (one file of prompts) that it belongs to.
    """

    first: int
    last: int
    weight: float
    part: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Version:
    """One of the two benchmarks.

    Args:
        name: its name here.
        judge: the judge of published figures.
        criteria: name of each criterion to its weight; the key of a score is the name in lower case
            with underscores.
        most: best score of a criterion; the worst is 0.
        max_tokens: longest answer of the judge.
        categories: categories by name. The id decides, not the entry `Category` of a prompt.
        files: the files of prompts, one for each part.
        merged: one file with all prompts; None if there is none.
    """

    name: str
    judge: str
    criteria: Mapping[str, float]
    most: int
    max_tokens: int
    categories: Mapping[str, Category]
    files: tuple[PromptFile, ...]
    merged: PromptFile | None = None

    def category(self, prompt_id: int) -> str | None:
        """Returns the category of a prompt; None for an id outside 1..1000."""
        for name, one in self.categories.items():
            if one.first <= prompt_id <= one.last:
                return name
        return None

    def ids(self, part: str) -> range:
        """Returns the ids of a part: "culture", "space-time" or "science"; "all" for 1..1000."""
        inside = [one for one in self.categories.values() if part in ("all", one.part)]
        return range(min(one.first for one in inside), max(one.last for one in inside) + 1)

    def score_keys(self) -> list[str]:
        """Returns the keys of the scores, in the order of the criteria."""
        return [name.lower().replace(" ", "_") for name in self.criteria]

    def score(self, values: Mapping[str, float]) -> float:
        """Returns the score of an image, 0..1, from the scores of its criteria by key."""
        total = 0.0  # added one by one: `sum` rounds differently from Python 3.12 on
        for key, weight in zip(self.score_keys(), self.criteria.values(), strict=True):
            total += weight * values[key]
        return total / self.most

    def overall(self, means: Mapping[str, float | None]) -> float | None:
        """Returns the weighted mean over the categories; None if one has no mean."""
        total = 0.0
        for name, category in self.categories.items():
            value = means.get(name)
            if value is None:
                return None
            total += category.weight * value
        return total


_ORIGIN = "github.com/PKU-YuanGroup/WISE (it has no licence)"


def _file(name: str, sha256: str) -> PromptFile:
    return PromptFile(name=name, sha256=sha256, origin=_ORIGIN)


LEGACY = Version(
    name="wise",
    judge="gpt-4o-2024-05-13",
    criteria={"Consistency": 0.7, "Realism": 0.2, "Aesthetic Quality": 0.1},
    most=2,
    max_tokens=2000,
    categories={
        "culture": Category(1, 400, 0.4, "culture"),
        "time": Category(401, 567, 0.167, "space-time"),
        "space": Category(568, 700, 0.133, "space-time"),
        "biology": Category(701, 800, 0.1, "science"),
        "physics": Category(801, 900, 0.1, "science"),
        "chemistry": Category(901, 1000, 0.1, "science"),
    },
    files=(
        _file(
            "cultural_common_sense.json",
            "7a59216c768698280cea37caa574b52f3faf054d73b398b9bb6b3161baf8e3aa",
        ),
        _file(
            "spatio-temporal_reasoning.json",
            "e27d797885ad86e64d857d0cc93d33e04be572a8dcae95692a2c7e7876233f9a",
        ),
        _file(
            "natural_science.json",
            "b262fae58e413c7a4bd3c3d5a089f8c6529feac227e4b6606be261a949035544",
        ),
    ),
)

VERIFIED = Version(
    name="wise_verified",
    judge="Qwen3.5-35B-A3B",
    criteria={"Score": 1.0},
    most=1,
    max_tokens=500,
    categories={
        "culture": Category(1, 400, 0.4, "culture"),
        "time": Category(401, 520, 0.12, "space-time"),
        "space": Category(521, 640, 0.12, "space-time"),
        "biology": Category(641, 760, 0.12, "science"),
        "physics": Category(761, 880, 0.12, "science"),
        "chemistry": Category(881, 1000, 0.12, "science"),
    },
    files=(
        _file(
            "cultural prompts of WISE_Verified",
            "23482925266e2784b2ba24b75239fdc6691bf85ae253d2c4aa38b71b45fefa89",
        ),
        _file(
            "spatio-temporal prompts of WISE_Verified",
            "42c0b9d829365e392c2d4af283850dc76b1f922ab0c79198366de4f306eaf2b6",
        ),
        _file(
            "natural science prompts of WISE_Verified",
            "6f346c336f16f611e5c73e0fcacdccb336c200d534cf111526b22d50ea912555",
        ),
    ),
    merged=_file(
        "merge.json of WISE_Verified",
        "10f2690624ed8f03f21bd3e9c535e26f791da8bab67ac857903bede65985b82d",
    ),
)

REWRITTEN = ("4383290c", "f63c98ff", "6aee690e")
"""Beginnings of the hashes of the simplified prompts of an ablation (`_rewrite` files)."""


def known_file(sha256: str) -> str | None:
    """Returns the kind of a published file: a version's name or "rewritten"; None for others."""
    if sha256.startswith(REWRITTEN):
        return "rewritten"
    for version in (LEGACY, VERIFIED):
        if any(
            one is not None and one.sha256 == sha256 for one in (*version.files, version.merged)
        ):
            return version.name
    return None
