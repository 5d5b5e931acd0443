"""The schema of a run: one frozen pydantic model per section of the YAML file.

Each field's description is its documentation: the comments of the shipped and the resolved YAML
files are generated from it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from medseg.config.fields import (
    Axes,
    Component,
    ComponentSpec,
    Fraction,
    Kind,
    Labels,
    PathString,
    Positive,
    PositiveFloat,
    Section,
    Triple,
)

__all__ = [
    "Augment", "Budget", "ComponentSpec", "Config", "Data", "Evaluation", "Inference", "Model",
    "Preprocess", "Section", "Split", "Train",
]  # fmt: skip

_AXIS = dict(zip("LRPAIS", "xxyyzz", strict=True))


class Split(Section):
    """Which cases train and which validate."""

    file: PathString | None = Field(
        None, description='JSON file {"train": [ids], "validation": [ids]}; null: draw folds'
    )
    folds: Annotated[int, Field(ge=2)] = Field(
        5, description="number of folds drawn from the seed when there is no file"
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
            patterns = [*(self.channels or {}).values(), self.label, self.mask]
            for pattern in patterns:
                if pattern is not None and "{id}" not in pattern:
                    raise ValueError(f"the pattern {pattern!r} must contain {{id}}")
        return self


class Preprocess(Section):
    """What happens to every volume before the network. It is undone after it."""

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


class Model(Section):
    """Encoder and decoder, or one whole network."""

    encoder: Annotated[Component, Kind("encoder")] | None = Field(
        None, description="an encoder by name, with its options"
    )
    decoder: Annotated[Component, Kind("decoder")] | None = Field(
        None, description="a decoder by name, with its options"
    )
    deep_supervision: Annotated[int, Field(ge=0, le=5)] = Field(
        2, description="how many coarser levels also get a head and a loss"
    )
    network: Annotated[Component, Kind("network")] | None = Field(
        None, description="a whole network instead of encoder and decoder"
    )

    @model_validator(mode="after")
    def _one_way(self) -> Model:
        if self.network is not None and (self.encoder is not None or self.decoder is not None):
            raise ValueError("give either encoder and decoder, or network, not both")
        if self.network is None and (self.encoder is None or self.decoder is None):
            raise ValueError("give encoder and decoder, or network")
        return self


class Augment(Section):
    """Random changes of a training batch. The affine and the intensities are drawn per sample."""

    affine: Fraction = Field(0.5, description="probability of a rotation with scaling")
    rotate: Annotated[float, Field(ge=0, le=180)] = Field(
        15.0, description="largest rotation about each axis, in degrees"
    )
    scale: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.15, description="largest relative change of size"
    )
    flip: Axes = Field((), description="axes mirrored with probability one half")
    brightness: Annotated[float, Field(ge=0)] = Field(
        0.15, description="largest shift, in standard deviations"
    )
    contrast: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.2, description="largest relative change of contrast"
    )
    gamma: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="largest relative change of the gamma exponent"
    )
    noise: Annotated[float, Field(ge=0)] = Field(
        0.1, description="largest standard deviation of added noise"
    )
    noise_probability: Fraction = Field(0.25, description="probability of noise")
    transforms: tuple[Annotated[Component, Kind("transform")], ...] = Field(
        (), description="further transforms of each sample, run in the data workers"
    )


class Budget(Section):
    """When training ends. The schedule anneals over whichever one is set."""

    epochs: Positive | None = Field(None, description="passes over the training cases")
    steps: Positive | None = Field(None, description="optimiser steps")
    wall_seconds: PositiveFloat | None = Field(None, description="seconds on the clock")
    cpu_seconds: PositiveFloat | None = Field(
        None, description="CPU seconds of the training process, start-up and validation included"
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> Budget:
        if len(self.model_dump(exclude_none=True)) != 1:
            raise ValueError("give exactly one of epochs, steps, wall_seconds, cpu_seconds")
        return self


class Train(Section):
    """Patches, optimiser, schedule and when to validate."""

    patch: Triple = Field(description="voxels of a training patch (i, j, k)")
    batch: Positive = Field(2, description="patches of one step")
    budget: Budget = Field(description="when training ends: one of its four ways")
    foreground: Fraction = Field(
        0.5, description="share of patches centred on a voxel of a class drawn evenly"
    )
    optimiser: Literal["adamw", "sgd"] = Field(
        "adamw", description="adamw, or sgd with Nesterov momentum"
    )
    lr: PositiveFloat = Field(2.5e-3, description="peak learning rate")
    weight_decay: Annotated[float, Field(ge=0)] = Field(1e-2, description="decoupled for adamw")
    momentum: Fraction = Field(0.9, description="first moment (adamw) or momentum (sgd)")
    schedule: Literal["cosine", "poly"] = Field("cosine", description="fall of the learning rate")
    warmup: Fraction = Field(0.04, description="share of the budget in which the rate rises")
    clip: PositiveFloat | None = Field(5.0, description="largest gradient norm; null: unlimited")
    ema: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.99, description="decay of the averaged weights that validate and predict; 0: none"
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "bf16", description="type of autocast; fp16 (with loss scaling) on CUDA only"
    )
    validate_every: Positive | None = Field(
        None, description="steps between validations; null: ten times in the budget"
    )
    validation_cases: Positive | None = Field(
        None, description="cases of a validation during training; null: all"
    )
    save_every: Positive | None = Field(
        None, description="steps between states to resume from; null: at every validation"
    )
    patience: Positive | None = Field(
        None, description="validations without gain before an early stop; null: never"
    )
    workers: Annotated[int, Field(ge=0)] = Field(0, description="data-loading processes")
    start_method: Literal["fork", "forkserver", "spawn"] = Field(
        "forkserver", description="how the processes start"
    )
    threads: Positive | None = Field(None, description="CPU threads; null: all")
    cache: PathString | None = Field(
        None, description="folder of preprocessed cases; null: in the run folder"
    )


class Inference(Section):
    """How a whole volume is predicted."""

    mode: Literal["auto", "window", "whole"] = Field(
        "window",
        description="window: sliding, as trained; whole: one pass; auto: whole up to whole_voxels",
    )
    patch: Triple | None = Field(None, description="voxels of a window; null: train.patch")
    overlap: Annotated[float, Field(ge=0, lt=1)] = Field(0.5, description="overlap of windows")
    whole_voxels: Positive = Field(
        500_000, description="auto: the largest volume predicted in one pass, in voxels"
    )
    batch: Positive = Field(1, description="windows of one pass")
    flip: Axes = Field(
        (), description="axes mirrored, predicted again and averaged (test-time augmentation)"
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field("bf16", description="type of autocast")
    probabilities: bool = Field(False, description="also write the class probabilities")


class Evaluation(Section):
    """What is measured."""

    tolerance_mm: PositiveFloat = Field(
        1.0, description="tolerance of the normalised surface distance, in mm"
    )
    lesions: bool = Field(False, description="also count lesions (connected components)")
    min_lesion_mm3: Annotated[float, Field(ge=0)] = Field(
        0.0, description="smaller lesions are not counted, in mm3"
    )
    connectivity: Literal[6, 18, 26] = Field(26, description="neighbours of a voxel in a lesion")
    lesion_overlap: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.1, description="least IoU for a lesion to be found; 0: one voxel"
    )


class Config(Section):
    """A whole run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = Field(
        description="a name for the run"
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        0, description="every random draw comes from it"
    )
    plugins: tuple[PathString, ...] = Field(
        (), description="plugin files, folders or modules, relative to this file"
    )
    data: Data = Field(description="the volumes and their labels")
    preprocess: Preprocess = Field(Preprocess(), description="before the network, undone after it")
    model: Model = Field(description="the network")
    loss: Annotated[Component, Kind("loss")] = Field(
        ComponentSpec(name="dice_ce"), description="the loss by name, with its options"
    )
    augment: Augment = Field(Augment(), description="random changes of training batches")
    train: Train = Field(description="patches, optimiser, schedule")
    inference: Inference = Field(Inference(), description="prediction of whole volumes")
    postprocess: tuple[Annotated[Component, Kind("postprocessor")], ...] = Field(
        (), description="what happens to a prediction, in order"
    )
    evaluation: Evaluation = Field(Evaluation(), description="what is measured")
