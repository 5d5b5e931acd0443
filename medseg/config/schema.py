"""The schema of a run: one frozen pydantic model per section of the YAML file.

Each field's description is its documentation: the comments of the shipped and the resolved YAML
files are generated from it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal, TypeVar

from pydantic import Field, ValidationInfo, field_validator

from medseg.config.axes import numbers
from medseg.config.data import Data, Preprocess, Split
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
from medseg.config.model import Model, Pretrained
from medseg.config.postprocess import Postprocessor, PostprocessorSpec
from medseg.config.train import Augment, Budget, Freeze, Train
from medseg.errors import ConfigError
from medseg.registry import unknown

__all__ = [
    "Augment", "Budget", "ComponentSpec", "Config", "Data", "Evaluation", "Freeze", "Inference",
    "Model", "PostprocessorSpec", "Preprocess", "Pretrained", "Section", "Split", "Train",
]  # fmt: skip


Scales = tuple[Annotated[float, Field(ge=0.5, le=2)], ...]


class Inference(Section):
    """How a whole volume is predicted."""

    mode: Literal["auto", "window", "whole", "resize"] = Field(
        "window",
        description="window: sliding, as trained; whole: one pass; auto: whole up to whole_voxels; "
        "resize: one pass at the size of a window",
    )
    roi: bool = Field(
        False,
        description="predict inside the region of interest alone; outside it is background",
    )
    patch: Triple | None = Field(None, description="voxels of a window; null: train.patch")
    overlap: Annotated[float, Field(ge=0, lt=1)] = Field(0.5, description="overlap of windows")
    whole_voxels: Positive = Field(
        500_000, description="auto: the largest volume predicted in one pass, in voxels"
    )
    batch: Positive | None = Field(
        None,
        description="windows of one pass; fewer where memory runs out; null: one large one, or a "
        "few small ones",
    )
    skip_constant: bool = Field(
        True, description="leave out windows in which no channel varies: background"
    )
    memory: Positive = Field(
        1024,
        description="MiB that sums of overlapping windows may take; a volume that needs more is "
        "predicted in parts",
    )
    flip: Axes = Field(
        (),
        description="axes mirrored, predicted again and averaged (test-time augmentation): "
        "0, 1, 2 or LR, AP, IS",
    )
    scales: Scales = Field(
        (),
        description="sizes of the volume, predicted and averaged (test-time augmentation), as "
        "[0.9, 1, 1.1]; empty: its own",
    )
    prior_correction: Fraction = Field(
        0.0,
        description="how much of the log ratio of class priors, those of whole training volumes "
        "over those of training patches, is added to the logits: 0 none, 1 all",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="type of autocast; auto: bf16 (or fp16) where the device is fast at it and a "
        "piece of the volume gets the same labels as in fp32",
    )
    probabilities: bool = Field(False, description="also write the class probabilities")
    probability_type: Literal["float32", "uint16", "uint8"] = Field(
        "float32", description="how they are stored: uint16 in steps of 1/65535, uint8 of 1/255"
    )
    uncertainty: Literal["none", "entropy", "spread"] = Field(
        "none",
        description="also write a map: entropy of the probabilities (0 to 1), or their spread over "
        "an ensemble",
    )
    compression: Annotated[int, Field(ge=0, le=9)] = Field(
        4, description="of .nii.gz: 0 none (large), 1 to 5 fast, 6 to 9 slow and small"
    )


class Evaluation(Section):
    """What is measured."""

    tolerance_mm: PositiveFloat = Field(
        1.0, description="tolerance of the normalised surface distance, in mm"
    )
    roi: bool = Field(False, description="only inside the region of interest")
    lesions: bool = Field(False, description="also count lesions (connected components)")
    min_lesion_mm3: Annotated[float, Field(ge=0)] = Field(
        0.0, description="smaller lesions are not counted, in mm3"
    )
    connectivity: Literal[6, 18, 26] = Field(26, description="neighbours of a voxel in a lesion")
    lesion_overlap: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.1, description="least IoU (any_overlap: covered share) to be found; 0: one voxel"
    )
    lesion_rule: Literal["one_to_one", "any_overlap"] = Field(
        "one_to_one",
        description="one_to_one: each lesion has one partner at most; any_overlap: any number",
    )
    lesion_bins_mm3: tuple[PositiveFloat, ...] = Field(
        (10.0, 100.0, 1000.0), description="recall by lesion size: bounds of the sizes, in mm3"
    )
    lesion_maps: bool = Field(
        True, description="with lesions: paint found, missed and false ones, lesions/ID.nii.gz"
    )
    subsets: bool = Field(
        False, description="after training, also score every subset of the channels"
    )

    @field_validator("lesion_bins_mm3")
    @classmethod
    def _ascend(cls, bins: tuple[float, ...]) -> tuple[float, ...]:
        if any(low >= high for low, high in pairwise(bins)):
            raise ValueError(f"each larger than the one before, got {list(bins)}")
        return bins


Flipping = TypeVar("Flipping", Augment, Inference)


class Config(Section):
    """A whole run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = Field(
        description="a name for the run"
    )
    about: str = Field(
        "", description="what it is, where the data are from and under which terms; for people"
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
    postprocess: tuple[Annotated[Postprocessor, Kind("postprocessor")], ...] = Field(
        (), description="what happens to a prediction, in order"
    )
    evaluation: Evaluation = Field(Evaluation(), description="what is measured")

    @field_validator("train", "inference", "evaluation")
    @classmethod
    def _has_a_region(cls, section: Section, info: ValidationInfo) -> Section:
        known = [info.data[key].mask for key in ("data", "preprocess") if key in info.data]
        if getattr(section, "roi", False) and known == [None, None]:
            raise ValueError(
                "roi needs a region of interest: set data.mask, or preprocess.mask to have one "
                "computed"
            )
        return section

    @property
    def numbered(self) -> Config:
        """This config with the axes of its flips as numbers, as `draw` and `predict_volume` want.

        The config itself keeps the names, so that it is written as it was given.
        """
        sections = {name: getattr(self, name) for name in ("augment", "inference")}
        update = {}
        for name, section in sections.items():
            flip = numbers(section.flip, self.preprocess.orientation)
            update[name] = section.model_copy(update={"flip": flip})
        return self.model_copy(update=update)

    @field_validator("augment", "inference")
    @classmethod
    def _axes_are_known(cls, section: Flipping, info: ValidationInfo) -> Flipping:
        if "preprocess" in info.data:
            try:
                numbers(section.flip, info.data["preprocess"].orientation)
            except ConfigError as error:
                raise ValueError(f"flip: {error}") from error
        return section

    @field_validator("train")
    @classmethod
    def _mix_has_a_partner(cls, train: Train, info: ValidationInfo) -> Train:
        if "augment" in info.data and info.data["augment"].mix and train.batch < 2:
            raise ValueError(
                f"augment.mix takes from another patch of the batch: batch is {train.batch}, give "
                "2 or more, or set augment.mix to 0"
            )
        return train

    @field_validator("postprocess")
    @classmethod
    def _protects_classes(
        cls, entries: tuple[PostprocessorSpec, ...], info: ValidationInfo
    ) -> tuple[PostprocessorSpec, ...]:
        classes = info.data["data"].classes if "data" in info.data else None
        for n, entry in enumerate(entries):
            for name in entry.protect:
                if classes is not None and name not in classes:  # null: dataset.json will tell
                    raise ValueError(f"[{n}].protect: {unknown('class', name, classes)}")
        return entries
