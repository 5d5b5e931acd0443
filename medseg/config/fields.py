"""What the fields of the schema are made of: numbers with bounds, paths, components."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from medseg.config.axes import AxisName

Positive = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Triple = tuple[Positive, Positive, Positive]
Labels = Annotated[int, Field(ge=1, le=65535)]


class FilePath:
    """Marks a string as a path, relative to the file (or for overrides the folder) it is from."""


PathString = Annotated[str, FilePath()]


class ComponentSpec(BaseModel):
    """A plugin component by name, with its options beside it. `name` alone may stand for it."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)
    name: str

    def spec(self) -> dict[str, Any]:
        """The mapping that `Registry.bind` takes."""
        return {"name": self.name, **(self.model_extra or {})}


class Kind:
    """Marks a component field with the kind of registry that it draws from."""

    def __init__(self, kind: str) -> None:
        self.kind = kind


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


component = BeforeValidator(_named)
Component = Annotated[ComponentSpec, component]


class Section(BaseModel):
    """Base of all sections: unknown keys and loose types are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


Axes = tuple[Annotated[int, Field(ge=0, le=2)] | AxisName, ...]
