"""Components by name: registration, lookup, and options checked against the signature."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from medseg.errors import ConfigError, PluginError
from medseg.registry import REGISTRIES, Registry, option_problems, unknown


@pytest.fixture
def shapes() -> Registry:
    registry = Registry("shape", supplies=("sides",))

    @registry.register("box")
    class Box:
        def __init__(
            self,
            sides: int,
            widths: tuple[int, ...],
            colour: Literal["Red", "blue"] = "Red",
            scale: float = 1.0,
            deep: bool = False,
        ) -> None:
            self.values = (sides, widths, colour, scale, deep)

    @registry.register("dot")
    def dot(size: float | None = None) -> Any:
        return size

    return registry


def test_register_leaves_the_component_unchanged() -> None:
    registry = Registry("shape")

    def dot() -> None: ...

    assert registry.register("dot")(dot) is dot
    assert registry.get("dot") is dot
    assert "dot" in registry
    assert registry.names() == ["dot"]


def test_names_are_sorted(shapes: Registry) -> None:
    assert shapes.names() == ["box", "dot"]


def test_a_name_is_given_once(shapes: Registry) -> None:
    def other() -> None: ...

    before = shapes.get("dot")
    with pytest.raises(PluginError, match=r"shape 'dot' is defined twice: .*dot and .*other"):
        shapes.register("dot")(other)
    assert shapes.get("dot") is before


def test_a_preset_has_other_defaults_and_the_same_options(shapes: Registry) -> None:
    shapes.preset("blue_box", "box", widths=(1, 2), colour="blue")
    assert shapes.names() == ["blue_box", "box", "dot"]
    assert shapes.presets == {"blue_box": "box"}
    assert shapes.build({"name": "blue_box"}, sides=4).values == (4, (1, 2), "blue", 1.0, False)
    changed = {"name": "blue_box", "widths": [3], "deep": True}
    assert shapes.build(changed, sides=4).values == (4, (3,), "blue", 1.0, True)
    with pytest.raises(ConfigError, match="shape 'blue_box': unknown option 'wide'"):
        shapes.build({"name": "blue_box", "wide": 1}, sides=4)
    assert shapes.signature("blue_box").parameters["deep"].annotation is bool


def test_a_preset_of_an_option_that_does_not_exist(shapes: Registry) -> None:
    with pytest.raises(PluginError, match=r"preset 'big': shape 'dot': unknown option 'sise'"):
        shapes.preset("big", "dot", sise=9.0)
    with pytest.raises(PluginError, match=r"unknown shape 'dott'; did you mean 'dot'"):
        shapes.preset("big", "dott", size=9.0)
    shapes.preset("big", "dot", size=9.0)
    shapes.preset("big", "dot", size=9.0)  # the same again: a re-run notebook cell
    with pytest.raises(PluginError, match="shape 'big' is defined twice"):
        shapes.preset("big", "dot", size=8.0)


def test_the_same_source_may_register_again() -> None:
    """A notebook cell that is run twice gives its class twice."""
    registry = Registry("shape")
    made = []
    for n in range(2):

        def dot(n: int = n) -> int:
            return n

        made.append(registry.register("dot")(dot))
    assert registry.get("dot") is made[1]


@pytest.mark.parametrize(
    "parameters", ["*sizes", "**options", "size, /", "size, *, name='x'", "a, *b, **c"]
)
def test_options_must_have_names_of_their_own(parameters: str) -> None:
    scope: dict[str, Any] = {"__name__": "plugin"}
    exec(f"def dot({parameters}): ...", scope)
    registry = Registry("shape")
    with pytest.raises(PluginError, match=r"shape 'dot' in plugin\.dot"):
        registry.register("dot")(scope["dot"])
    assert registry.names() == []


def test_bind_checks_before_it_calls(shapes: Registry) -> None:
    call = shapes.bind({"name": "box", "widths": [8, 16], "scale": 2}, sides=4, unasked=1)
    assert call().values == (4, (8, 16), "Red", 2.0, False)
    assert isinstance(call.keywords["widths"], tuple)
    assert isinstance(call.keywords["scale"], float)


def test_build_gives_what_a_component_asks_for(shapes: Registry) -> None:
    assert shapes.build({"name": "box", "widths": [1]}, sides=3).values[0] == 3
    assert shapes.build({"name": "dot"}, sides=3) is None
    assert shapes.build({"name": "dot", "size": 0.5}, sides=3) == 0.5


def test_build_names_the_component_that_refuses_a_value() -> None:
    registry = Registry("shape")

    @registry.register("dot")
    def dot(size: float) -> None:
        raise ValueError(f"size {size} is too small")

    with pytest.raises(ConfigError, match=r"^shape 'dot': size 0.5 is too small$"):
        registry.build({"name": "dot", "size": 0.5})


@pytest.mark.parametrize(
    "spec, message",
    [
        ({"name": "bxo"}, "unknown shape 'bxo'; did you mean 'box'? (known: box, dot)"),
        ({"name": "qqq"}, "unknown shape 'qqq' (known: box, dot)"),
        ({}, "unknown shape '' (known: box, dot)"),
        ({"name": "box"}, "shape 'box' needs the option 'widths'"),
        (
            {"name": "box", "width": [1], "widths": [1]},
            "shape 'box': unknown option 'width'; did you mean 'widths'? "
            "(known: colour, deep, scale, widths)",
        ),
        (
            {"name": "box", "sides": 3, "widths": [1]},
            "shape 'box': unknown option 'sides'; did you mean 'widths'? "
            "(known: colour, deep, scale, widths)",
        ),
        (
            {"name": "box", "widths": [1], "colour": "red"},
            "shape 'box': should be 'Red' or 'blue', got 'red'",
        ),
        ({"name": "box", "widths": 8}, "shape 'box': should be a list, got 8"),
        ({"name": "dot", "size": "1"}, "shape 'dot': should be a valid number, got '1'"),
        ({"name": "dot", "zzz": 1}, "shape 'dot': unknown option 'zzz' (known: size)"),
    ],
)
def test_bind_says_what_is_wrong(shapes: Registry, spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        shapes.bind(spec, sides=4)
    if "sides" in spec:  # the nearest name is a matter of taste
        assert "unknown option 'sides'" in str(caught.value)
    else:
        assert str(caught.value) == message


def test_bind_tells_all_mistakes_at_once(shapes: Registry) -> None:
    with pytest.raises(ConfigError) as caught:
        shapes.bind({"name": "box", "deep": 1, "scale": "x", "zzz": 0}, sides=4)
    for part in ("needs the option 'widths'", "boolean", "number", "unknown option 'zzz'"):
        assert part in str(caught.value)


@pytest.mark.parametrize("value", [True, "1", [1], 1.5, float("nan"), None])
def test_values_are_not_bent_into_an_int(shapes: Registry, value: Any) -> None:
    with pytest.raises(ConfigError):
        shapes.bind({"name": "box", "widths": [value]}, sides=4)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True])
def test_a_number_is_finite_and_no_bool(shapes: Registry, value: Any) -> None:
    with pytest.raises(ConfigError):
        shapes.bind({"name": "dot", "size": value})


def test_options_may_have_any_name() -> None:
    """Also names that mean something to pydantic."""
    registry = Registry("shape")

    @registry.register("odd")
    def odd(copy: int, _hidden: int, model_config: int, json: int = 1, schema: int = 2) -> Any:
        return copy, _hidden, model_config, json, schema

    spec = {"name": "odd", "copy": 1, "_hidden": 2, "model_config": 3, "schema": 4}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert registry.build(spec) == (1, 2, 3, 1, 4)
        with pytest.raises(ConfigError, match="needs the option '_hidden'"):
            registry.bind({"name": "odd", "copy": 1, "model_config": 3})


def test_dataclasses_are_components() -> None:
    registry = Registry("shape")

    @registry.register("box")
    @dataclass
    class Box:
        width: int
        depth: int | None = None

    assert registry.build({"name": "box", "width": 3}) == Box(3)


def test_a_path_leads_into_nested_options(shapes: Registry) -> None:
    signature = shapes.signature("box")
    problems = option_problems("box", signature, {"widths": [1, "x"]}, shapes.supplies)
    assert [path for path, _ in problems] == [("widths", 1)]


def test_unknown_without_a_near_name() -> None:
    assert unknown("option", "foo", ["x", "a"]) == "unknown option 'foo' (known: a, x)"
    assert unknown("option", "foo", []) == "unknown option 'foo' (known: none)"


def test_unknown_among_many_tells_the_nearest() -> None:
    known = [f"net{n}" for n in range(30)]
    message = unknown("encoder", "net-3", known)
    assert message.startswith("unknown encoder 'net-3'; did you mean 'net3'? (near: net3, ")
    assert message.endswith("; 30 known, see `medseg plugins`)")
    assert unknown("encoder", "zzz", known) == (
        "unknown encoder 'zzz' (30 known, see `medseg plugins`)"
    )


def test_there_is_a_registry_for_each_kind() -> None:
    assert list(REGISTRIES) == [
        "encoder", "decoder", "network", "loss", "sampler", "logger", "transform", "postprocessor"
    ]  # fmt: skip
