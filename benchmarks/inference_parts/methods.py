"""What is measured: the peers, and medseg with one means after the other."""

from __future__ import annotations

from dataclasses import dataclass

Words = tuple[str, ...]


@dataclass(frozen=True)
class Method:
    """A way from a prepared volume to labels.

    Args:
        name: In the table.
        overrides: medseg's settings; empty for the peers.
        peer: "monai" or "nnunet"; empty: medseg.
        fp32: Name of the method with the same windows in fp32, whose labels these are held
            against; empty: this is the one.
        options: Of the peers: "box", the brain's bounding box alone; "bf16", torch's autocast with
            the network in the channels-last layout. Of medseg: "compile", by torch.compile.
    """

    name: str
    overrides: Words = ()
    peer: str = ""
    fp32: str = ""
    options: Words = ()


EVERY: Words = ("inference.roi=false", "inference.skip_constant=false", "inference.overlap=0.5")
BOX: Words = ("inference.roi=true", "inference.overlap=0.5")
FP32, BF16 = "inference.precision=fp32", "inference.precision=bf16"


def _pair(name: str, *settings: str) -> tuple[Method, Method]:
    """A method in fp32 and in bf16."""
    first = f"medseg, {name}, fp32"
    return (
        Method(first, (*settings, FP32)),
        Method(f"medseg, {name}, bf16", (*settings, BF16), fp32=first),
    )


ALL, ALL_BF16 = _pair("same windows", *EVERY)
IN_BOX, IN_BOX_BF16 = _pair("brain's box", *BOX)
MONAI = Method("MONAI", peer="monai", fp32=ALL.name)
NNUNET = Method("nnU-Net", peer="nnunet", fp32=ALL.name)

METHODS: tuple[Method, ...] = (
    MONAI,
    NNUNET,
    ALL,
    ALL_BF16,
    Method(
        "medseg, same without constant windows, bf16",
        ("inference.roi=false", "inference.skip_constant=true", "inference.overlap=0.5", BF16),
        fp32=ALL.name,
    ),
    Method("MONAI, brain's box", peer="monai", fp32=IN_BOX.name, options=("box",)),
    Method("MONAI, brain's box, bf16", peer="monai", fp32=IN_BOX.name, options=("box", "bf16")),
    Method("nnU-Net, brain's box", peer="nnunet", fp32=IN_BOX.name, options=("box",)),
    IN_BOX,
    IN_BOX_BF16,
    Method("medseg, brain's box, auto", (*BOX, "inference.precision=auto"), "", IN_BOX.name),
    Method(
        "medseg, box, 2 windows a pass, bf16", (*BOX, "inference.batch=2", BF16), "", IN_BOX.name
    ),
    Method("medseg, box, torch.compile, bf16", (*BOX, BF16), "", IN_BOX.name, ("compile",)),
    *_pair("box, overlap .25", "inference.roi=true", "inference.overlap=0.25"),
    *_pair("box, windows of 128^3", *BOX, "inference.patch=[128,128,128]"),
    *_pair("box, windows of 144x160x144", *BOX, "inference.patch=[144,160,144]"),
    *_pair("box in one pass", "inference.roi=true", "inference.mode=whole"),
)
