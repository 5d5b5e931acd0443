"""The plugins that medseg ships: ordinary ones, which importing this package registers."""

from medseg_plugins import (
    deeplab,
    deepmedic,
    fcn,
    fpn,
    inception,
    monai_components,
    monai_network,
    resnet,
    unet,
    vgg,
)

__all__ = [
    "deeplab",
    "deepmedic",
    "fcn",
    "fpn",
    "inception",
    "monai_components",
    "monai_network",
    "resnet",
    "unet",
    "vgg",
]
