"""The section `model`: encoder and decoder or a whole network, and weights to start from."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, Strict, model_validator

from medseg.config.fields import Component, ComponentSpec, Kind, PathString, Section, component

FileChannel = Literal["red", "green", "blue", "mean", "zero"] | Annotated[int, Field(ge=0)]


class Pretrained(Section):
    """Weights to start from, and how those of a 2D network become those of a 3D one."""

    path: PathString | None = Field(
        None, description="file of weights: .safetensors, .pt, .pth, .npz, .onnx or .index"
    )
    url: Annotated[str, Field(pattern=r"^https?://")] | None = Field(
        None, description="where to fetch the file instead; needs sha256, and medseg[hub]"
    )
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = Field(
        None, description="what the file must hash to; null: not checked (path only)"
    )
    key: str | None = Field(
        None, description="entry of the file that holds the weights, e.g. state_dict; null: found"
    )
    inflate: Literal["mean", "centre"] = Field(
        "mean",
        description="2D kernels along the new axis: repeated and divided by its length, or centred",
    )
    axis: Annotated[int, Field(ge=0, le=2)] = Field(2, description="the new axis of 2D kernels")
    channels: dict[str, FileChannel] | None = Field(
        None,
        description="our channel: the file's (red, green, blue, mean, zero or its number); "
        "null: as they are if as many, else mean",
    )
    order: Literal["rgb", "bgr"] | None = Field(
        None, description="the file's channels; null: bgr for caffe, else rgb"
    )
    preprocessing: Literal["caffe", "torchvision", "inception"] | None = Field(
        None,
        description="what its images went through: folded into the first layer; null: nothing",
    )
    intensity: Annotated[tuple[float, float], Strict(False)] = Field(  # a list from YAML
        (0.0, 1.0), description="our intensities that are its black and white (with preprocessing)"
    )
    allow_partial: bool = Field(
        False,
        description="whether kernels that the file lacks, or that do not fit, may start anew",
    )

    @model_validator(mode="after")
    def _one_source(self) -> Pretrained:
        if (self.path is None) == (self.url is None):
            raise ValueError("give either path or url")
        if self.url is not None and self.sha256 is None:
            raise ValueError("a url needs sha256: only the file that you mean is loaded")
        if self.intensity[0] >= self.intensity[1]:
            raise ValueError(f"intensity must be [black, white], rising, got {self.intensity}")
        return self


class EncoderSpec(ComponentSpec):
    """An encoder by name, with its options and the weights it starts from."""

    pretrained: Pretrained | None = Field(None, description="weights that the encoder starts from")


def _encoder(value: Any) -> Any:
    return EncoderSpec(**value.spec()) if type(value) is ComponentSpec else value


Encoder = Annotated[EncoderSpec, BeforeValidator(_encoder), component]


class Model(Section):
    """Encoder and decoder, or one whole network."""

    encoder: Annotated[Encoder, Kind("encoder")] | None = Field(
        None, description="an encoder by name, with its options"
    )
    decoder: Annotated[Component, Kind("decoder")] | None = Field(
        None, description="a decoder by name, with its options"
    )
    deep_supervision: Annotated[int, Field(ge=0, le=5)] = Field(
        2, description="how many coarser levels also get a head and a loss"
    )
    supervision_weights: tuple[Annotated[float, Field(ge=0)], ...] | None = Field(
        None,
        description="share of each output in the loss, auxiliary maps last; null: halved by level",
    )
    network: Annotated[Component, Kind("network")] | None = Field(
        None, description="a whole network instead of encoder and decoder"
    )
    pretrained: Pretrained | None = Field(
        None, description="weights that all of it starts from, heads of as many classes included"
    )

    @model_validator(mode="after")
    def _one_way(self) -> Model:
        if self.network is not None and (self.encoder is not None or self.decoder is not None):
            raise ValueError("give either encoder and decoder, or network, not both")
        if self.network is None and (self.encoder is None or self.decoder is None):
            raise ValueError("give encoder and decoder, or network")
        if self.supervision_weights is not None and not any(self.supervision_weights[:1]):
            raise ValueError(
                "the first of supervision_weights is that of the output that predictions are made "
                f"from: it must be above 0, got {list(self.supervision_weights)}"
            )
        if self.pretrained is not None and self.encoder is not None and self.encoder.pretrained:
            raise ValueError("give pretrained for the model or for its encoder, not both")
        return self
