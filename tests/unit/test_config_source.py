"""YAML text becomes plain values with their places; what is no plain value is refused."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.config.source import DEEPEST, LARGEST, Place, Problem, dotted, parse, read
from medseg.errors import ConfigError


def value(text: str) -> Any:
    source = parse(f"key: {text}", "f")
    assert not source.problems
    return source.values["key"]


def problems(text: str) -> list[tuple[int, int, str, str]]:
    return [(p.place.line, p.place.column, p.where, p.message) for p in parse(text, "f").problems]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("1e-3", 1e-3), ("1E3", 1000.0), ("+1.5e+2", 150.0), (".5", 0.5), ("1.", 1.0), ("-0", 0),
        ("12", 12), ("-12", -12), ("+12", 12), ("010", 10), ("9007199254740993", 9007199254740993),
        ("true", True), ("False", False), ("TRUE", True),
        ("null", None), ("~", None), ("", None), ("Null", None),
        ("no", "no"), ("yes", "yes"), ("on", "on"), ("off", "off"), ("y", "y"), ("N", "N"),
        ("0x1F", "0x1F"), ("0b1", "0b1"), ("0o17", "0o17"), ("1_000", "1_000"), ("1:30", "1:30"),
        ("12e03x", "12e03x"), ("1e", "1e"), ("-x", "-x"), ("2026-01-02", "2026-01-02"), ("=", "="),
        ("'12'", "12"), ('"true"', "true"), ("!!str 12", "12"), ("nulls", "nulls"), ("<<", "<<"),
        ("a # b", "a"), ("a#b", "a#b"), ("[1, [2, 3]]", [1, [2, 3]]),
        ("{a: {b: 1}}", {"a": {"b": 1}}), ("µ 中 🧠", "µ 中 🧠"), ("[]", []), ("{}", {}),
    ],
)  # fmt: skip
def test_scalars_are_those_of_yaml_1_2(text: str, expected: Any) -> None:
    assert value(text) == expected
    assert type(value(text)) is type(expected)


@pytest.mark.parametrize("text", [".nan", ".inf", "-.inf", ".NaN", "+.INF", "1e999", "-1e400"])
def test_numbers_are_finite(text: str) -> None:
    assert problems(f"a: {{b: {text}}}") == [(1, 8, "a.b", f"a finite number expected, got {text}")]


@pytest.mark.parametrize(
    "text",
    ["!!python/object/apply:os.system ['touch ran']", "!!python/name:os.system", "!foo x",
     "!!binary aGVsbG8=", "!!set {a, b}", "!!timestamp 2026-01-02", "!!omap [a: 1]", "!foo [1]",
     "!!python/object/new:os.system [echo]", "!!merge x"],
)  # fmt: skip
def test_tags_are_refused(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ((line, column, where, message),) = problems(f"a:\n  b: {text}")
    assert (line, column, where) == (2, 6, "a.b")
    assert "is not allowed; write plain values" in message
    assert not list(tmp_path.iterdir())


def test_a_tag_that_does_not_fit_its_value() -> None:
    assert problems("a: !!int x") == [(1, 4, "a", "cannot be read as int")]
    assert problems("a: " + "9" * 5000) == [(1, 4, "a", "cannot be read as int")]


@pytest.mark.parametrize(
    "text, line, column",
    [("a: &x 1", 1, 4), ("a: 1\nb: *x", 2, 4), ("a: &x [1]\nb: *x", 1, 4), ("&x a: 1", 1, 1),
     ("a: [1, *x]", 1, 8)],
)  # fmt: skip
def test_anchors_and_aliases_are_refused(text: str, line: int, column: int) -> None:
    message = "not valid YAML: anchors (&) and aliases (*) are not allowed"
    assert problems(text) == [(line, column, "", message)]


def test_a_billion_laughs_are_not_laughed() -> None:
    lines = ["a0: &a0 [lol, lol]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    start = time.process_time()
    assert len(problems("\n".join(lines))) == 1
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    "text",
    ["a: " + "[" * 100_000, "a: " + "[" * 40 + "]" * 40, "{a: " * 40 + "1" + "}" * 40,
     "\n".join(" " * n + "a:" for n in range(2000)), "- " * 5000 + "a", "? " * 3000],
)  # fmt: skip
def test_deep_nesting_is_refused(text: str) -> None:
    ((*_, message),) = problems(text)
    assert message == f"not valid YAML: nested deeper than {DEEPEST} levels"


def test_nesting_has_room_for_what_configs_need() -> None:
    assert problems("a: " + "[" * (DEEPEST - 2) + "]" * (DEEPEST - 2)) == []


def test_keys_are_given_once() -> None:
    assert problems("a: 1\nb: {c: 1, d: 2, c: 3}\na: 4\na: 5") == [
        (2, 17, "b", "key 'c' is given twice (first on line 2)"),
        (3, 1, "", "key 'a' is given twice (first on line 1)"),
        (4, 1, "", "key 'a' is given twice (first on line 1)"),
    ]
    assert parse("a: 1\na: 4", "f").values == {"a": 1}


@pytest.mark.parametrize(
    "key", ["[a, b]", "{a: b}", r'"a\0b"', r'"\ud800"', r'"\e[31m"', r'"a\nb"']
)
def test_keys_are_plain_words(key: str) -> None:
    assert problems(f"x: 1\n? {key}\n: 1") == [(2, 3, "", "a key must be a plain word")]


@pytest.mark.parametrize("text", [r'"a\0b"', r'"\ud800"', r'"\e[31mred"', r'"a\nb"', "|\n  a\n  b"])
def test_texts_are_of_one_line_without_controls(text: str) -> None:
    message = "a line of text without control characters expected"
    assert problems(f"a: {text}") == [(1, 4, "a", message)]


@pytest.mark.parametrize(
    "text, line, column, message",
    [
        ("a: [1, 2", 1, 9, "expected ',' or ']'"),
        ("a: 1\n\tb: 2", 2, 1, "cannot start any token"),
        ("a: 1\n---\nb: 2", 2, 1, "expected a single document in the stream but found another"),
        ("a: 'x", 1, 6, "end of stream"),
        ("a: b: c", 1, 5, "mapping values are not allowed here"),
        ("a: @x", 1, 4, "cannot start any token"),
        ("%YAML 3.0\n---\na: 1", 1, 1, "incompatible YAML document"),
        ("ok: 1\nab: x\0y", 2, 6, "a character that no text has"),
        ("a: \x1b[31m", 1, 4, "a character that no text has"),
        ("a: !<x", 1, 7, "expected '>'"),
    ],
)
def test_what_is_no_yaml_is_told_with_its_place(
    text: str, line: int, column: int, message: str
) -> None:
    source = parse(text, "f")
    assert source.values is None
    (problem,) = source.problems
    assert (problem.place.line, problem.place.column) == (line, column)
    assert message in problem.message
    assert "\x1b" not in str(problem)
    assert "\0" not in str(problem)


@pytest.mark.parametrize("text", ["", "\n\n", "# a comment\n", "---\n", "~"])
def test_nothing(text: str) -> None:
    source = parse(text, "f")
    assert source.values is None
    assert source.problems == []
    assert source.place(()).column == 1


def test_places_of_values_and_keys() -> None:
    source = parse("a:\n  b: [1, {c: x}]\n'd e': 2\n", "f")
    where = ("a", "b", 1, "c")
    assert source.place(where) == Place("f", 2, 14, "  b: [1, {c: x}]")
    assert source.place(where, key=True).column == 11
    assert source.place(("a", "b", 1, "missing")) == source.place(("a", "b", 1))
    assert source.place(("d e",), key=True) == Place("f", 3, 1, "'d e': 2")
    assert source.known(("a", "b", 7)) == ("a", "b")


def test_a_caret_stands_below_the_place() -> None:
    lines = str(Problem(Place("f.yaml", 2, 4, "a: bad"), "a", "is bad")).split("\n")
    assert lines == ["f.yaml:2:4: a: is bad", "    a: bad", "       ^"]


def test_a_caret_keeps_tabs_and_long_lines_in_step() -> None:
    _, text, caret = str(Problem(Place("f", 1, 4, "a:\tbad"), "", "m")).split("\n")
    assert (text, caret) == ("    a:\tbad", "      \t^")
    line = "x" * 5000 + "BAD" + "y" * 5000
    _, text, caret = str(Problem(Place("f", 1, 5001, line), "", "m")).split("\n")
    assert len(text) < 200
    assert text[caret.index("^") :].startswith("BAD")


def test_dotted() -> None:
    assert dotted(("model", "encoder", "widths", 1)) == "model.encoder.widths[1]"
    assert dotted(("a", 0, "b")) == "a[0].b"
    assert dotted(()) == ""


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\r\nb:\r\n  - x\r\n  - !bad y\r\n")
    source = read(path)
    assert source.values == {"a": 1, "b": ["x", None]}
    assert source.place(("a",)) == Place(str(path), 1, 4, "a: 1")
    assert source.problems[0].place == Place(str(path), 4, 5, "  - !bad y")
    path.write_bytes(b"a: 1\r")
    assert read(path).values == {"a": 1}


@pytest.mark.parametrize(
    "content, reason",
    [(b"a: \xff", "not UTF-8 text"), ("a: ä".encode("utf-16"), "not UTF-8 text"),
     (b"a" * (LARGEST + 1), f"{LARGEST + 1} bytes; a config has at most {LARGEST}")],
)  # fmt: skip
def test_files_that_are_no_text(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: {reason}")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml: No such file or directory"):
        read(tmp_path / "gone.yaml")
    with pytest.raises(ConfigError, match="Is a directory"):
        read(tmp_path)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=("Cc", "Cs"), exclude_characters="\ufeff")),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.from_regex(r"[a-z_]{1,9}", fullmatch=True), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@settings(deadline=None)
@given(PLAIN)
def test_reads_what_json_says(values: Any) -> None:
    """JSON is YAML 1.2: whatever it holds is read as the same values of the same types."""
    source = parse(json.dumps({"a": values}, ensure_ascii=False), "f")
    assert source.problems == []
    assert _typed(source.values["a"]) == _typed(values)


@settings(deadline=None)
@given(st.text(st.sampled_from("ab01.:-#'\"[]{}&*!|>%@ \n\t,?~<="), max_size=40))
def test_any_text_gives_values_or_a_problem(text: str) -> None:
    source = parse(text, "f")
    assert source.place(()).line >= 1
    for problem in source.problems:
        assert 1 <= problem.place.line <= text.count("\n") + 1
        assert str(problem)
    if not source.problems:
        assert _shape(source.values) == _shape(yaml.load(text, yaml.BaseLoader))


def _shape(value: Any) -> Any:
    """Keys and lengths, without the scalars."""
    if isinstance(value, dict):
        return {key: _shape(item) for key, item in value.items()}
    return [_shape(item) for item in value] if isinstance(value, list) else None


def _typed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _typed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_typed(item) for item in value]
    if isinstance(value, float):
        return float, value, math.copysign(1, value)
    return type(value), value
