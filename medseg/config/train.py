"""The sections `augment` and `train`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from medseg.config.fields import (
    Axes,
    Component,
    ComponentSpec,
    Fraction,
    Kind,
    PathString,
    Positive,
    PositiveFloat,
    Section,
    Triple,
)

# Control points of a cubic B-spline moved by less than 1 / 2.48 of their distance along each axis
# keep a deformation of space one to one: Choi and Lee 2000, doi:10.1006/gmod.2000.0531.
_INJECTIVE = 0.4


class Augment(Section):
    """Random changes of a training batch. Each is drawn for a sample, some for each channel."""

    affine: Fraction = Field(0.5, description="probability of a rotation with scaling")
    rotate: Annotated[float, Field(ge=0, le=180)] = Field(
        15.0, description="largest rotation about each axis, in degrees"
    )
    scale: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.15, description="largest relative change of size"
    )
    flip: Axes = Field(
        (), description="axes mirrored with probability one half: 0, 1, 2 or LR, AP, IS"
    )
    elastic: Fraction = Field(0.0, description="probability of an elastic deformation")
    elastic_mm: PositiveFloat = Field(
        4.0, description="largest displacement along each axis, in mm"
    )
    elastic_grid_mm: PositiveFloat = Field(
        24.0, description="distance of the deformation's control points, in mm"
    )
    bias_field: Fraction = Field(0.0, description="probability of a bias field in a channel")
    bias_field_strength: PositiveFloat = Field(
        0.3, description="largest logarithm of the gain within the field"
    )
    blur: Fraction = Field(0.0, description="probability of a Gaussian blur of a channel")
    blur_mm: PositiveFloat = Field(1.0, description="its largest standard deviation, in mm")
    low_resolution: Fraction = Field(0.0, description="probability of larger voxels in a channel")
    low_resolution_factor: Annotated[float, Field(gt=1)] = Field(
        2.0, description="their largest size, as a multiple of the shortest voxel edge"
    )
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
    mix: Fraction = Field(
        0.0, description="probability that a box comes from another patch of the batch"
    )
    mix_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.5, description="the box's largest share of the patch's voxels"
    )
    channel_dropout: Fraction = Field(
        0.0, description="probability that a channel is set to 0; one is always kept"
    )
    transforms: tuple[Annotated[Component, Kind("transform")], ...] = Field(
        (), description="further transforms of each sample, run in the data workers"
    )

    @model_validator(mode="after")
    def _does_not_fold(self) -> Augment:
        most = _INJECTIVE * self.elastic_grid_mm
        if self.elastic and self.elastic_mm > most:
            raise ValueError(
                f"elastic_mm {self.elastic_mm:g} could fold space onto itself: at most "
                f"{_INJECTIVE:g} of elastic_grid_mm {self.elastic_grid_mm:g}, so {most:g}"
            )
        return self


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


class Freeze(Section):
    """Levels of the encoder that stay as they were loaded, their norm statistics included."""

    levels: Positive | Literal["all"] | None = Field(
        None, description="how many levels of the encoder are fixed, finest first; all; null: none"
    )
    thaw: tuple[Fraction, Fraction] | None = Field(
        None,
        description="shares of the budget between which they begin to train, coarsest first; "
        "null: never",
    )

    @model_validator(mode="after")
    def _thaw_rises(self) -> Freeze:
        if self.thaw is not None and self.thaw[0] > self.thaw[1]:
            raise ValueError(f"thaw must be [first, last], got {self.thaw}")
        if self.thaw is not None and self.levels is None:
            raise ValueError("thaw needs levels: nothing is fixed")
        return self


class Train(Section):
    """Patches, optimiser, schedule and when to validate."""

    patch: Triple = Field(description="voxels of a training patch (i, j, k)")
    batch: Positive = Field(2, description="patches of one step")
    accumulate: Positive = Field(
        1, description="batches whose gradients make one step: a larger batch in the same memory"
    )
    budget: Budget = Field(description="when training ends: one of its four ways")
    sampler: Annotated[Component, Kind("sampler")] = Field(
        ComponentSpec(name="balanced"), description="where patches lie, by name, with its options"
    )
    roi: bool = Field(
        False,
        description="whether patches keep to the region of interest",
    )
    optimiser: Literal["muon", "adamw", "sgd"] = Field(
        "muon",
        description="muon: orthogonalised steps for convolutions, adamw for the rest; adamw; sgd "
        "with Nesterov momentum",
    )
    lr: PositiveFloat = Field(2.5e-3, description="peak learning rate")
    encoder_lr: PositiveFloat = Field(1.0, description="factor on the encoder's learning rate")
    level_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="further factor on it for each level finer than the coarsest"
    )
    freeze: Freeze = Field(Freeze(), description="levels of the encoder that do not train")
    weight_decay: Annotated[float, Field(ge=0)] = Field(1e-2, description="decoupled for adamw")
    momentum: Fraction = Field(0.9, description="first moment (adamw) or momentum (sgd)")
    schedule: Literal["cosine", "poly"] = Field("cosine", description="fall of the learning rate")
    warmup: Fraction = Field(0.04, description="share of the budget in which the rate rises")
    clip: PositiveFloat | None = Field(5.0, description="largest gradient norm; null: unlimited")
    ema: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.99, description="decay of the averaged weights that validate and predict; 0: none"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="type of autocast; fp16 (with loss scaling) on CUDA only; auto: bf16 where a "
        "few steps at the start are faster in it",
    )
    compile: bool = Field(
        False, description="torch.compile the network: a slow first step, then maybe faster ones"
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
    loggers: tuple[Annotated[Component, Kind("logger")], ...] = Field(
        (),
        description="where else the log goes, as [tensorboard, mlflow], by name, with options; "
        "log.jsonl and progress.png are always written",
    )
