"""The networks that medseg ships: ordinary plugins, which importing this package registers."""

from medseg_plugins import inception, monai_network, resnet, unet, vgg

__all__ = ["inception", "monai_network", "resnet", "unet", "vgg"]
