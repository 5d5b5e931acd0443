"""MONAI's dictionary transforms and its losses (Cardoso et al. 2022, arXiv:2211.02701), by name."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from medseg.errors import PluginError
from medseg.registry import LOSSES, TRANSFORMS
from medseg.volumes.dataset import IGNORE_INDEX
from medseg_plugins.monai_options import make, signature_of

# The rooms of monai.transforms that change voxels; the others load, save, crop or convert.
_ROOMS = ("intensity", "smooth_field", "spatial")
# Interpolation of image and of label, by a transform's own default: "area" would thin lesions, and
# the resampler that has it places its "nearest" half a voxel off.
_MODES = {"bilinear": ("bilinear", "nearest"), "area": ("trilinear", "nearest-exact")}
_CERTAIN = 50.0  # a logit whose softmax is 0 or 1 in float32


@TRANSFORMS.register("monai")
class MonaiTransform:
    """One of MONAI's dictionary transforms by its class name.

    Unless `options` say otherwise, transforms of intensities take the image alone, the others
    image and label, and where there is interpolation it is the nearest voxel for the label.

    Args:
        transform: A dictionary class of `monai.transforms.intensity`, `.spatial` or
            `.smooth_field`, e.g. "RandFlipd".
        options: The class's own options, by name.

    Raises:
        ConfigError: The class or an option is unknown, an option is missing or refused.
    """

    def __init__(self, transform: str, options: dict[str, Any] | None = None) -> None:
        classes = _transforms()
        defaults = _defaults(classes[transform], options or {}) if transform in classes else {}
        options = {**defaults, **(options or {})}
        self.name = transform
        self.transform = make("MONAI transform", "transform", transform, classes, options, {})
        self.is_random = hasattr(self.transform, "set_random_state")

    def sample(self, rng: np.random.Generator) -> int:
        """Draw the seed of one application."""
        return int(rng.integers(2**32)) if self.is_random else 0

    def __call__(self, data: dict[str, Any], seed: int | None = None) -> dict[str, Any]:
        """Apply the transform to "image" (C, I, J, K) and "label" (1, I, J, K).

        Args:
            data: Arrays by name; left as they are.
            seed: From `sample`; a transform without randomness needs none.

        Raises:
            PluginError: A random transform got no seed, or the label was mixed.
        """
        if self.is_random:
            if seed is None:
                raise PluginError(
                    f"MONAI transform {self.name!r} is random: it belongs in augment.transforms"
                )
            self.transform.set_random_state(seed=seed)
        out = self.transform({key: np.copy(data[key]) for key in ("image", "label") if key in data})
        result = {**data, "image": np.asarray(out["image"], dtype=np.float32)}
        if "label" in data:
            result["label"] = self._label(np.asarray(out["label"]), data["label"].dtype)
        return result

    def _label(self, label: np.ndarray[Any, Any], dtype: Any) -> np.ndarray[Any, Any]:
        whole = label.astype(dtype)
        if not np.array_equal(whole, label):
            raise PluginError(
                f"MONAI transform {self.name!r} mixes label values: set its options keys or mode"
            )
        return whole


@LOSSES.register("monai")
class MonaiLoss(nn.Module):
    """One of MONAI's losses of one-hot targets by its class name, with softmax.

    They know no ignored voxels. Such a voxel is shown to them as background that is predicted with
    certainty: it has no gradient and no part in the foreground's overlap.

    Args:
        classes: Number of classes, background included.
        loss: A class of `monai.losses` that takes `to_onehot_y`, e.g. "TverskyLoss".
        options: The class's own options, by name; a list of weights becomes a tensor.

    Raises:
        ConfigError: The class or an option is unknown, an option is missing or refused.
    """

    def __init__(self, classes: int, loss: str, options: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.classes = classes
        filled = {"to_onehot_y": True, "softmax": True, "use_softmax": True, "num_classes": classes}
        given = {
            key: torch.tensor(value) if key == "weight" and isinstance(value, list) else value
            for key, value in (options or {}).items()
        }
        self.loss = make("MONAI loss", "loss", loss, _losses(), given, filled)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        is_ignored = (target == IGNORE_INDEX)[:, None]
        background = functional.one_hot(torch.zeros_like(target[:1, :1, :1, :1]), self.classes)
        certain = (2 * background.movedim(-1, 1) - 1) * _CERTAIN
        shown = torch.where(is_ignored, certain, logits.float())
        loss: Tensor = self.loss(shown, target[:, None].masked_fill(is_ignored, 0))
        return loss


def _transforms() -> dict[str, type[Any]]:
    """MONAI's dictionary transforms that change voxels, without their aliases."""
    from monai import transforms

    return {
        item.__name__: item
        for item in vars(transforms).values()
        if inspect.isclass(item)
        and issubclass(item, transforms.MapTransform)
        and item is not transforms.MapTransform
        and _room(item) in _ROOMS
    }


def _room(component: type[Any]) -> str:
    """The room of a class: `spatial` for one of `monai.transforms.spatial.dictionary`."""
    return component.__module__.split(".")[2]


def _defaults(component: type[Any], options: dict[str, Any]) -> dict[str, Any]:
    """What medseg gives a dictionary transform where the user gives nothing."""
    parameters = signature_of(component)
    both = ["image", "label"]
    keys = options.get("keys", ["image"] if _room(component) == "intensity" else both)
    defaults = {"keys": keys}
    if "allow_missing_keys" in parameters:
        defaults["allow_missing_keys"] = True
    mode = parameters["mode"].default if "mode" in parameters else None
    if mode in _MODES and not isinstance(keys, str):
        defaults["mode"] = [_MODES[mode][key == "label"] for key in keys]
    return defaults


def _losses() -> dict[str, type[nn.Module]]:
    """MONAI's losses that turn class indices into one-hot targets, without their aliases."""
    from monai import losses

    return {
        item.__name__: item
        for item in vars(losses).values()
        if inspect.isclass(item)
        and issubclass(item, nn.Module)
        and "to_onehot_y" in signature_of(item)
    }
