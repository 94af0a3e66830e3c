"""Copies the measured figures into docs/results.md and README.md, after a new bundled model.

    python scripts/write_figures.py

Scores come from the model card, times from benchmarks/results/generate.json. Text around the
tables stays; tests/unit/test_docs.py compares the tables with both sources.
"""

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CARD = ROOT / "src" / "blip3o" / "pocket" / "README.md"
TIMES = ROOT / "benchmarks" / "results" / "generate.json"
RESULTS, README = ROOT / "docs" / "results.md", ROOT / "README.md"

OVERALL = "text to image, overall"
NAMES = {
    OVERALL: "scenes, text to image, overall (held-out compositions)",
    "reconstructions that keep everything": (
        "reconstructions that keep every object, color and place"
    ),
}
"""Names in the documents of figures that have others in the card."""
BARS = {
    OVERALL: 0.92,
    "questions about unseen images": 0.97,
    "captions, attributes right": 0.97,
    "edits judged right": 0.90,
    "reconstructions that keep everything": 0.96,
    "wording never trained, text to image": 0.85,
    "wording never trained, questions": 0.90,
    "wording never trained, edits": 0.80,
}
CATEGORY_BAR = 0.85
COLD_BAR, WARM_BAR = "5 s", "1 s"


def score_rows(card: str) -> list[str]:
    """Returns a row of the documents for each score of a model card, with its bar."""
    rows = []
    for name, value in re.findall(r"^\| ([\w ,]+) \| (\d\.\d{3}) \|$", card, re.M):
        is_category = name.startswith("text to image, ") and name != OVERALL
        shown = name.replace("text to image, ", "- ").replace("_", " ") if is_category else name
        bar = CATEGORY_BAR if is_category else BARS[name]
        rows.append(f"| {NAMES.get(name, shown)} | {value} | {bar:.2f} |")
    return rows


def time_rows(results: dict[str, Any]) -> list[str]:
    """Returns the rows of the times of four images."""
    seconds = {row["variant"]: row["wall_s"]["median"] for row in results["rows"]}
    cold, warm = seconds["generate"], seconds["batch_of_4"]
    return [
        f"| four images, 24 steps, process start to files | {cold:.1f} s | {COLD_BAR} |",
        f"| four images, warm, one batch | {warm:.2f} s | {WARM_BAR} |",
    ]


def with_table(text: str, rows: list[str]) -> str:
    """Returns docs/results.md with other rows in its first table of figures."""
    head, rule, rest = text.partition("| figure | value | bar |\n|---|---|---|\n")
    after = re.sub(r"\A(\|.*\n)+", "", rest)
    return head + rule + "\n".join(rows) + "\n" + after


def with_rows(text: str, rows: list[str]) -> str:
    """Returns README.md, in which every row of the same name has the value and bar of `rows`."""
    for row in rows:
        name = row.split(" | ")[0]
        text = re.sub(rf"^{re.escape(name)} \|.*$", row, text, flags=re.M)
    return text


def main() -> None:
    """Writes both documents."""
    rows = score_rows(CARD.read_text(encoding="utf-8"))
    rows += time_rows(json.loads(TIMES.read_text(encoding="utf-8")))
    for file, change in ((RESULTS, with_table), (README, with_rows)):
        file.write_text(change(file.read_text(encoding="utf-8"), rows), encoding="utf-8")
        print(file)


if __name__ == "__main__":
    main()
