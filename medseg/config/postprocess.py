"""An entry of `postprocess`: a component, its options, and the classes that it may not touch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, Strict

from medseg.config.fields import ComponentSpec, component


class PostprocessorSpec(ComponentSpec):
    """A postprocessor by name, with its options and the classes that it leaves as they are."""

    protect: Annotated[tuple[str, ...], Strict(False)] = Field(  # a list from a model file
        (), description="classes whose masks this step may not change"
    )


Postprocessor = Annotated[PostprocessorSpec, component]
