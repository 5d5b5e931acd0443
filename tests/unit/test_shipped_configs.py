"""The recipes in configs/ are complete, run as they are, and their comments are the schema's."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import medseg
from medseg.config import Config, dump, load
from medseg.config.source import read

FOLDER = Path(__file__).parents[2] / "configs"
SHIPPED = sorted(FOLDER.glob("*.yaml"))


def as_written(path: Path) -> Config:
    """The config without its paths made absolute."""
    source = read(path)
    assert source.problems == []
    return Config.model_validate_json(json.dumps(source.values))


def test_the_recipes_are_there() -> None:
    assert {"demo.yaml", "hippocampus.yaml", "sts_pet.yaml"} <= {path.name for path in SHIPPED}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_a_recipe_loads(path: Path) -> None:
    config = load(path)
    assert config.plugins == ()
    assert Path(config.data.path).is_absolute()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_a_recipe_is_what_medseg_would_write(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == dump(as_written(path))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_a_recipe_cites_its_data(path: Path) -> None:
    about = as_written(path).about
    source = "Generated phantoms" if path.stem == "demo" else r"doi:10\.\d{4,}/\S+|https?://\S+"
    assert re.search(source, about), about


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_the_page_of_recipes_lists_it(path: Path) -> None:
    page = (FOLDER.parent / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert f"(../configs/{path.name})" in page


def test_the_demo_is_the_demo() -> None:
    ours, packaged = (
        as_written(path)
        for path in (FOLDER / "demo.yaml", Path(medseg.__file__).with_name("demo.yaml"))
    )
    data = packaged.data.model_copy(update={"path": ours.data.path})
    assert ours == packaged.model_copy(update={"data": data})
