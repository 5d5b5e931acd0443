"""The sections `data` and `preprocess`: the volumes, and what happens to each first."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from medseg.config.fields import (
    Component,
    ComponentSpec,
    Kind,
    Labels,
    PathString,
    PositiveFloat,
    Section,
)
from medseg.registry import unknown

Grids = Literal["refuse", "resample"]
Missing = Literal["refuse", "zero"]
_AXIS = dict(zip("LRPAIS", "xxyyzz", strict=True))


class Split(Section):
    """Which cases train and which validate."""

    file: PathString | None = Field(
        None,
        description='JSON file {"train": [ids], "validation": [ids]} or {"folds": [[ids], ...]}; '
        "null: draw folds",
    )
    folds: Annotated[int, Field(ge=2)] = Field(
        5,
        description="number of folds drawn from the seed when there is no file, alike in classes "
        "and lesion volumes",
    )
    fold: Annotated[int, Field(ge=0)] = Field(0, description="the fold that validates, from 0")

    @model_validator(mode="after")
    def _fold_exists(self) -> Split:
        if self.fold >= self.folds:
            raise ValueError(f"fold {self.fold} of {self.folds}: folds count from 0")
        return self


class Data(Section):
    """Where the volumes lie and what their labels mean."""

    layout: Literal["folder", "csv", "msd", "nnunet"] = Field(
        description="how the files are arranged: folder, csv, msd or nnunet"
    )
    path: PathString = Field(description="the folder (or the .csv file), relative to this file")
    channels: dict[str, str] | None = Field(
        None,
        description="channel name: file pattern with {id} (folder) or column (csv); "
        "null: from dataset.json",
    )
    label: str | None = Field(
        None, description="file pattern with {id} (folder) or column (csv) of the label"
    )
    mask: str | None = Field(
        None, description="file pattern or column of a region of interest; null: none"
    )
    weights: str | None = Field(
        None, description="file pattern or column of a map of where patches are drawn; null: none"
    )
    reference: str | None = Field(
        None, description="channel whose grid is the case's; null: the first"
    )
    grids: Grids = Field(
        "refuse", description="a channel on another grid: refuse it, or resample it in mm"
    )
    missing: Missing = Field(
        "refuse", description="a channel that is not there: refuse the case, or take it as zero"
    )
    classes: dict[str, Labels | Annotated[tuple[Labels, ...], Field(min_length=1)]] | None = Field(
        None,
        description="class name: label value, or a list of them for an overlapping region; "
        "null: from dataset.json",
    )
    ignore_label: Labels | None = Field(
        None, description="label value that neither trains nor scores"
    )
    split: Split = Field(Split(), description="which cases train and which validate")

    @model_validator(mode="after")
    def _patterns(self) -> Data:
        if self.layout in ("folder", "csv"):
            for key in ("channels", "classes"):
                if not getattr(self, key):
                    raise ValueError(f"layout {self.layout!r} needs data.{key}")
        if self.layout == "folder":
            others = [text for text in (self.label, self.mask, self.weights) if text is not None]
            patterns = [*(self.channels or {}).values(), *others]
            for pattern in patterns:
                if "{id}" not in pattern:
                    raise ValueError(f"the pattern {pattern!r} must contain {{id}}")
                if "**" in pattern.removeprefix("**/"):
                    raise ValueError(f"the pattern {pattern!r} may have **/ in front, not later")
            if len({pattern.startswith("**/") for pattern in patterns}) > 1:
                raise ValueError(f"either all patterns begin with **/ or none does: {patterns}")
        if self.channels and self.reference not in (None, *self.channels):
            raise ValueError(f"reference: {unknown('channel', str(self.reference), self.channels)}")
        return self


class Preprocess(Section):
    """What happens to every volume before the network. It is undone after it."""

    mask: (
        Literal["file", "nonzero", "not_corner", "otsu_plus", "otsu_largest", "mean_plus"] | None
    ) = Field(
        None,
        description="region of interest: file (data.mask, which every case needs), or computed: "
        "nonzero, not_corner, otsu_plus, otsu_largest, mean_plus; null: data.mask if given",
    )
    orientation: Annotated[str, Field(pattern=r"^[RLAPSI]{3}$")] | None = Field(
        "RAS", description="axis directions the network sees; null: as stored"
    )
    spacing: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | Literal["median"] | None = Field(
        None,
        description="voxel size in mm to resample to; median: of the training cases; "
        "null: as stored",
    )
    crop: Literal["none", "foreground"] = Field(
        "none", description="foreground: only the bounding box of what is not background"
    )
    normalise: Annotated[tuple[Annotated[Component, Kind("transform")], ...], Field()] = Field(
        (ComponentSpec(name="zscore"),), description="intensity transforms, in order"
    )

    @field_validator("orientation")
    @classmethod
    def _names_each_axis(cls, codes: str | None) -> str | None:
        if codes is not None and len({_AXIS[code] for code in codes}) < 3:
            raise ValueError(f"{codes!r} must name one of each of L/R, P/A and I/S, as RAS does")
        return codes
