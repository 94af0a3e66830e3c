"""Recipes and run files: the settings that they accept."""

from pathlib import Path

import pytest

from blip3o.core.errors import UsageError
from blip3o.runs.start import cache_features, load_recipe, recipe_yaml, train_recipe

DERIVED = r"data\.image_px'; it is derived from model\.image_encoder\.image_px; remove the key$"


def test_an_override_of_the_image_size_is_explained(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=DERIVED):
        train_recipe("pocket.smoke", tmp_path / "run", ["data.image_px=48"])
    with pytest.raises(UsageError, match=DERIVED):
        train_recipe("pocket.all", tmp_path / "run", ["decoder.data.image_px=48"])
    with pytest.raises(UsageError, match=DERIVED):
        cache_features("pocket.decoder", ["data.image_px=48"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "stage"), [("pocket.smoke", ""), ("pocket.all", "encoder.")])
def test_a_run_file_that_names_the_image_size_is_explained(
    name: str, stage: str, tmp_path: Path
) -> None:
    text = recipe_yaml(name)
    file = tmp_path / "run.yaml"
    file.write_text(text)
    load_recipe(str(file), tmp_path)
    indent = "  " if stage else ""
    file.write_text(text.replace(f"{indent}data:\n", f"{indent}data:\n{indent}  image_px: 96\n", 1))
    with pytest.raises(UsageError, match=f"^{file}: .*'{stage}{DERIVED}"):
        load_recipe(str(file), tmp_path)
