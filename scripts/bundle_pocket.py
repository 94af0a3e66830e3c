"""Writes a trained pocket model into the package, and everything that is measured with it.

    python scripts/bundle_pocket.py runs/pocket --results outputs/eval/results.json

It writes bf16 weights, tokenizer and model card, the sample images of the README, the golden
recordings, the times of four images, and the figures in README.md and docs/results.md. A stage that
was trained in several runs has a folder for each: decoder, decoder-2, decoder-3. All figures of the
card are read from the run folders and from the results of `blip3o eval scenes`; stages without a
folder keep their rows of the present card.

Not written: sentences around the figures, and the screenshots of docs/serving.md
(`BLIP3O_SCREENSHOTS=docs/images pytest tests/e2e/page`, which needs Chromium).
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from blip3o import Blip3oPipeline
from blip3o.core.config import to_dict
from blip3o.eval.scenes import ScenesBenchmark
from blip3o.imaging.sheet import contact_sheet
from blip3o.recipes import pocket
from blip3o.recipes.pocket_parts import model
from blip3o.weights.folder import BUNDLED, load_model, save_model

ROOT = Path(__file__).parents[1]
STAGES = tuple(pocket.all_stages(Path("runs")))
SAMPLES = (
    "a red cat",
    "a photo of three purple hearts",
    "a red cat and a blue dog",
    "a pink fish on a sky background",
    "a yellow moon and a pink key",
    "two green apples",
    "a blue car to the left of a green tree",
    "four yellow stars",
    "a black key on a sunset background",
    "a purple guitar and an orange crown",
    "a green dog",
    "a yellow crown on a dotted background",
)
"""Prompts of docs/images/samples.png; each shows its first image, with seed 0."""

CARD = """---
license: apache-2.0
library_name: blip3o
pipeline_tag: any-to-any
---

# blip3o pocket

A unified model in miniature: {millions:.1f} M parameters, {megabytes:.1f} MB in bf16. It draws,
describes and edits procedural scenes of one to four objects (48 things, 8 colors, 10 backgrounds)
at {px} x {px} pixels. It knows nothing else: prompts outside the words of that world give images
of that world.

Its backbone is `{backbone}` and its generator `{generator}`; `blip3o/recipes/pocket_parts.py` has
all numbers. Sprites of the training data are cut from Noto Color Emoji (SIL OFL 1.1, see
`blip3o/data/scenes/NOTICE.txt`).

## Training

```
blip3o train pocket.all --out runs/pocket
```

Data seed {seed}; the scenes are written by the recipe on first use. Machine: {machine}.

| stage | steps | samples | hours |
|---|---|---|---|
{stages}

Total {hours:.2f} hours of stage time (some stages ran side by side, one core each).
{differences}
## Figures

`blip3o eval scenes --model pocket --out outputs/eval{overrides}`
on compositions that training never shows ({num_samples} samples):

{figures}
"""


def kept_rows(folders: Sequence[str]) -> list[tuple[str, float]]:
    """Returns the rows of the present card, and their hours, that new run folders do not replace.

    A model that continues the bundled one has no run folders of the stages before. `finish` is the
    stage from its start and replaces all its rows; `finish-2` is one continuation of it.
    """
    rows: list[tuple[str, float]] = []
    for line in (BUNDLED["pocket"] / "README.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        stage = cells[0].split("-")[0]
        if stage in STAGES and not {stage, cells[0]} & set(folders):
            rows.append((line, float(cells[-1])))
    return rows


def stage_folders(run_dir: Path) -> list[str]:
    """Returns the names of the run folders in order of the stages."""
    names = [path.parent.name for path in run_dir.glob("*/metrics.jsonl")]
    names.sort(key=lambda name: (len(name), name))  # puts understanding-10 after understanding-9
    return [name for stage in STAGES for name in names if name.split("-")[0] == stage]


def stage_row(run_dir: Path, stage: str) -> tuple[str, float]:
    """Returns a stage's row of the card and its hours, computed from the metrics."""
    lines = (run_dir / stage / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    seconds = 0.0
    for before, row in zip([{"samples_seen": 0}, *rows], rows, strict=False):
        seconds += (row["samples_seen"] - before["samples_seen"]) / row["samples_per_second"]
    last = rows[-1]
    hours = seconds / 3600
    return f"| {stage} | {last['step']} | {last['samples_seen']:,} | {hours:.2f} |", hours


def differences_from(
    recipe: dict[str, object], config: dict[str, object], path: str = ""
) -> list[str]:
    """Returns the settings whose stored values differ from those of the recipe."""
    found = []
    for name, value in recipe.items():
        own, where = config.get(name), f"{path}{name}"
        if isinstance(value, dict) and isinstance(own, dict):
            found += differences_from(value, own, f"{where}.")
        elif own != value:
            found.append(f"`{where}` {own} (recipe: {value})")
    return found


def changed_settings(settings: dict[str, object]) -> list[str]:
    """Returns the changed settings of an evaluation as command-line arguments."""
    defaults = to_dict(ScenesBenchmark())
    changed = {n: v for n, v in settings.items() if n in defaults and v != defaults[n]}
    return [f"{name}={value}" for name, value in changed.items()]


def figures_table(overall: float, by_category: dict[str, float], figures: dict[str, object]) -> str:
    """Returns the scores of an evaluation as a Markdown table."""
    rows: list[tuple[str, object]] = [("text to image, overall", overall)]
    rows += [(f"text to image, {name}", value) for name, value in by_category.items()]
    names = {
        "vqa_accuracy": "questions about unseen images",
        "caption_attribute_accuracy": "captions, attributes right",
        "edit_accuracy": "edits judged right",
        "reconstruct_kept": "reconstructions that keep everything",
        "wording_prompts": "wording never trained, text to image",
        "wording_questions": "wording never trained, questions",
        "wording_edits": "wording never trained, edits",
    }
    rows += [(name, figures[key]) for key, name in names.items() if key in figures]
    lines = [f"| {name} | {value:.3f} |" for name, value in rows if isinstance(value, float)]
    return "\n".join(["| figure | value |", "|---|---|", *lines])


def write_samples() -> None:
    """Draws the sample images of the README with the bundled model."""
    pipe = Blip3oPipeline.from_pretrained("pocket", device="cpu", dtype="fp32")
    generators = [torch.Generator().manual_seed(0) for _ in SAMPLES]
    images = pipe(SAMPLES, generator=generators).images
    sheet = contact_sheet(images, SAMPLES, columns=6, scale=2)
    sheet.save(ROOT / "docs" / "images" / "samples.png", optimize=True)


def run(*words: str, **environment: str) -> None:
    """Runs a Python program in the repository."""
    subprocess.run([sys.executable, *words], cwd=ROOT, check=True, env=os.environ | environment)


def main() -> None:
    """Writes the bundled model folder and what is measured with it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--model", type=Path, help="model folder (default: RUN/model)")
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--machine", default="2 CPU cores")
    parser.add_argument("--note", default="", help="sentence about this checkpoint for the card")
    options = parser.parse_args()
    loaded = load_model(options.model or options.run_dir / "model")
    results = json.loads(options.results.read_text(encoding="utf-8"))
    folders = stage_folders(options.run_dir)
    rows = kept_rows(folders)
    rows += [stage_row(options.run_dir, stage) for stage in folders]
    count = sum(parameter.numel() for parameter in loaded.model.parameters())
    differences = differences_from(to_dict(model()), to_dict(loaded.model.config))
    sentence = f"\nOlder than the recipe in: {', '.join(differences)}.\n" if differences else ""
    sentence += f"\n{options.note}\n" if options.note else ""
    card = CARD.format(
        differences=sentence,
        millions=count / 1e6,
        megabytes=2 * count / 1e6,
        px=loaded.model.config.image_decoder.image_px,
        backbone=loaded.model.config.backbone.kind,
        generator=loaded.model.config.generator.kind,
        seed=0,
        machine=options.machine,
        stages="\n".join(line for line, _ in rows),
        hours=sum(hours for _, hours in rows),
        num_samples=results["num_samples"],
        overrides="".join(f" {change}" for change in changed_settings(results["settings"])),
        figures=figures_table(results["overall"], results["by_category"], results["figures"]),
    )
    save_model(loaded.model, loaded.tokenizer, BUNDLED["pocket"], torch.bfloat16, card)
    print(BUNDLED["pocket"])
    write_samples()
    run("-m", "pytest", "-q", "tests/golden/test_outputs.py", BLIP3O_RECORD_GOLDEN="1")
    run("benchmarks/generate.py")
    run("scripts/write_figures.py")


if __name__ == "__main__":
    main()
