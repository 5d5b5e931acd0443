"""A config that is written out is read back as the same config, and explains each of its keys."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from medseg.config import Config, dump, loads
from medseg.config.fields import Section
from medseg.config.model import EncoderSpec
from medseg.config.source import parse

TEXT = st.text(
    st.characters(exclude_categories=("Cc", "Cs"), exclude_characters="\ufeff"),
    min_size=1,
    max_size=30,
) | st.sampled_from(
    ["1e-3", "1e3", "no", "on", "null", "~", "true", "010", "0x1F", "1_000", ".5", "1.", ".inf",
     ".nan", "a: b", "a #b", "- a", "a, b", "[a]", "{a}", "&a", "*a", "!a", "'", '"', "a ", " a",
     "2026-01-02", "1:30", "=", "<<", "%a", "@a", "`a", "|", ">", "?", "a\u2028b", "\xa0", "\\"]
)  # fmt: skip
NUMBER = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**18), 10**18)
POSITIVE = st.floats(min_value=1e-300, max_value=1e300)
OPTION = st.recursive(
    st.none() | st.booleans() | NUMBER | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
PRETRAINED = st.fixed_dictionaries(
    {"path": st.just("/weights.pt")},
    optional={
        "axis": st.integers(0, 2),
        "channels": st.dictionaries(TEXT, st.sampled_from(["red", "mean"]) | st.integers(0, 9)),
        "intensity": st.just([-2.0, 2.5]),
    },
)
NETWORK = st.fixed_dictionaries(
    {"name": st.just("monai"), "net": TEXT}, optional={"options": st.dictionaries(TEXT, OPTION)}
)


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    """Values of configs: texts and numbers of all sorts, components with and without options."""
    classes = draw(
        st.dictionaries(
            TEXT,
            st.integers(1, 9) | st.lists(st.integers(1, 9), min_size=1, max_size=2),
            min_size=1,
        )
    )
    return {
        "name": draw(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]*", fullmatch=True)),
        "seed": draw(st.integers(0, 2**63 - 1)),
        "data": {
            "layout": "csv",
            "path": "/" + draw(TEXT).strip("/").replace("~", "").replace("..", ""),
            "channels": draw(st.dictionaries(TEXT, TEXT, min_size=1, max_size=3)),
            "label": draw(st.none() | TEXT),
            "classes": classes,
        },
        "preprocess": {
            "orientation": None,
            "spacing": draw(
                st.none() | st.just("median") | st.lists(POSITIVE, min_size=3, max_size=3)
            ),
        },
        "model": draw(
            st.fixed_dictionaries({"network": NETWORK}, optional={"pretrained": PRETRAINED})
            | st.fixed_dictionaries(
                {
                    "encoder": st.just("vgg")
                    | st.fixed_dictionaries({"name": st.just("vgg"), "pretrained": PRETRAINED}),
                    "decoder": st.just("unet"),
                }
            )
        ),
        "loss": draw(
            st.just("dice") | st.fixed_dictionaries({"name": st.just("dice"), "smooth": NUMBER})
        ),
        "train": {
            "patch": draw(st.lists(st.integers(1, 512), min_size=3, max_size=3)),
            "budget": draw(
                st.fixed_dictionaries({"cpu_seconds": POSITIVE})
                | st.fixed_dictionaries({"epochs": st.integers(1)})
            ),
            "lr": draw(POSITIVE),
        },
        "postprocess": draw(
            st.lists(
                st.just({"name": "fill_holes"})
                | st.fixed_dictionaries(
                    {"name": st.just("min_volume"), "mm3": NUMBER},
                    optional={"protect": st.lists(st.sampled_from([*classes]), max_size=2)},
                ),
                max_size=3,
            )
        ),
    }


def checked(values: dict[str, Any]) -> Config:
    return Config.model_validate_json(json.dumps(values))


def small(*, label: str | None = None, lr: float = 1e-3) -> Config:
    return checked(
        {
            "name": "a",
            "data": {"layout": "msd", "path": "/x", "label": label},
            "model": {"encoder": "vgg", "decoder": "unet"},
            "train": {"patch": [8, 8, 8], "budget": {"steps": 1}, "lr": lr},
        }
    )


@settings(deadline=None, max_examples=50)
@given(configs())
def test_what_is_written_is_read_back(values: dict[str, Any]) -> None:
    config = checked(values)
    text = dump(config)
    again = loads(text, "/")
    assert again.model_copy(update={"data": config.data}) == config
    assert again.data.model_copy(update={"path": config.data.path}) == config.data  # resolved
    assert dump(again.model_copy(update={"data": config.data})) == text


@settings(deadline=None, max_examples=30)
@given(configs())
def test_each_key_has_its_line_and_its_comment(values: dict[str, Any]) -> None:
    """Every option of the schema is there with its description, also those left at default."""
    config = checked(values)
    assert set(_descriptions(config)) - _told(dump(config).splitlines()) == set()


def _told(lines: list[str]) -> set[str]:
    return {line.rsplit("  # ", 1)[1] for line in lines if "  # " in line}


def _descriptions(section: BaseModel) -> list[str]:
    found = []
    for name, field in type(section).model_fields.items():
        inner = getattr(section, name)
        if (type(section), name) != (EncoderSpec, "name"):
            assert field.description, field
            found.append(field.description)
        if isinstance(inner, Section | EncoderSpec):
            found += _descriptions(inner)
    return found


@settings(deadline=None, max_examples=30)
@given(configs())
def test_another_reader_finds_the_same(values: dict[str, Any]) -> None:
    """PyYAML's YAML 1.1 takes every text for a text, every number for the same number."""
    text = dump(checked(values))
    assert yaml.safe_load(text) == parse(text, "f").values


def test_lists_that_are_one_object_are_no_aliases() -> None:
    same = [2, 2, 2]
    spec = EncoderSpec.model_validate({"name": "resnet", "strides": [same, same, same]})
    config = small()
    config = config.model_copy(update={"model": config.model.model_copy(update={"encoder": spec})})
    text = dump(config)
    assert "strides: [[2, 2, 2], [2, 2, 2], [2, 2, 2]]" in text
    assert loads(text, "/") == config


@pytest.mark.parametrize("text", ["x" * 20_000, "a b " * 5000 + "c", "a\u2028" * 5000])
def test_long_texts_stay_on_their_line(text: str) -> None:
    config = small(label=text)
    assert loads(dump(config), "/") == config


@pytest.mark.parametrize(
    "value, text",
    [(1e-7, "1.0e-07"), (0.0025, "0.0025"), (1e16, "1.0e+16"), (2.0, "2.0"), (0.1, "0.1")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    lines = dump(small(lr=value)).splitlines()
    (line,) = [line for line in lines if line.startswith("  lr:")]
    assert line.split("#")[0].strip() == f"lr: {text}"


def test_reasons_stand_above_their_keys() -> None:
    reasons = {
        "train": "all of it",
        "train.patch": "as large as the memory allows: " + "so many words " * 12,
        "model.encoder.name": "known\u2028well",
        "evaluation.lesion_bins_mm3": "as measured # here",
    }
    config = small()
    text = dump(config, reasons)
    assert loads(text, "/") == config
    lines = text.splitlines()
    assert "\n# all of it\ntrain: " in text
    assert "\n    # known well\n    name: vgg\n" in text
    (place,) = [n for n, line in enumerate(lines) if line.startswith("  patch: [8")]
    assert lines[place - 3].startswith("  # as large as")
    assert lines[place - 1].startswith("  # ")
    assert [line for line in lines if not line.lstrip().startswith("# ")] == dump(
        config
    ).splitlines()
    assert max(len(line) for line in lines[place - 3 : place]) <= 100


def test_a_reason_without_a_key_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no key train\.patches"):
        dump(small(), {"train.patches": "many"})
