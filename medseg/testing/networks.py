"""The contracts of encoders, decoders and whole networks.

What holds for all three:

- The same structure of outputs in training and in evaluation, for every batch size from 1.
- Evaluation is deterministic, outputs are finite, and the inputs are left as they were.
- Every weight that training can change gets a gradient from the outputs together.
- No weight is saved twice; the state can be saved and loaded; a copy is a whole and separate one.
- Channels-last weights and inputs, with which networks predict, give the same.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medseg.testing.common import broken, equal, seeded

Size = tuple[int, int, int]
Shapes = list[tuple[int, ...]]


@seeded
def check_encoder(encoder: nn.Module, in_channels: int) -> None:
    """Check an encoder, made as `encoder(in_channels=..., **options)`.

    It keeps `.channels`, one number per level, and `.strides`, three numbers (i, j, k) per level:
    how many input voxels one voxel of the level stands for. Levels run from the finest to the
    coarsest, so each stride is a multiple of the one before. `forward` maps
    (N, in_channels, I, J, K) to a list with level l of shape (N, C_l, I/s_i, J/s_j, K/s_k), for
    every size that the last stride divides. No operation changes the input in place.

    An encoder with auxiliary outputs also keeps `.auxiliary_channels`, one number per auxiliary
    map, and may keep `.auxiliary_weight`, their weight in the loss (0.3 where it is absent).
    `with_auxiliary` maps the same input to two lists, levels and auxiliary maps: `forward` gives
    these levels too, and map m has the shape (N, C_m, I_m, J_m, K_m), of any size. Heads are the
    core's business. Without such outputs the attributes are absent, or the channels empty.

    Args:
        encoder: The encoder, built with small options.
        in_channels: What it was built with.

    Raises:
        PluginError: It breaks the contract.
    """
    channels = _channels(encoder)
    strides = _strides("encoder", getattr(encoder, "strides", None), len(channels))
    for size in _sizes(strides[-1]):
        for batch in (2, 1):
            x = torch.rand(batch, in_channels, *size)
            levels = _level_shapes(batch, size, channels, strides)
            _check_outputs(encoder, x, levels + _auxiliary_shapes(encoder, x, levels))
    _check_weights(encoder, torch.rand(2, in_channels, *size))


@seeded
def check_decoder(
    decoder: nn.Module, channels: Sequence[int], strides: Sequence[Sequence[int]]
) -> None:
    """Check a decoder, made as `decoder(channels=..., strides=..., **options)`.

    `forward` takes the encoder's levels, finest first, and returns a list, finest first: one
    tensor (N, C_l, I/s_l, J/s_l, K/s_l) for each number of its own `.channels`. The strides s_l are
    its own `.strides`, three numbers (i, j, k) per returned level against the network's input,
    which nest as an encoder's do and divide the encoder's last; where it keeps none, its level l
    has the size of the encoder's level l. Heads are not its business, nor is the way back to the
    input's size: the core adds both. It knows the encoder by `channels` and `strides` alone and
    does not change the levels it is given.

    Args:
        decoder: The decoder, built with small options.
        channels: The encoder's channels that it was built with.
        strides: The encoder's strides that it was built with.

    Raises:
        PluginError: It breaks the contract.
    """
    kept = _channels(decoder)
    own = _strides("decoder", getattr(decoder, "strides", strides[: len(kept)]), len(kept))
    if any(coarsest % s for coarsest, s in zip(strides[-1], own[-1], strict=True)):
        broken("decoder.strides", own, f"numbers that divide the encoder's last, {strides[-1]}")
    for size in _sizes(strides[-1]):
        for batch in (2, 1):
            levels = [torch.rand(shape) for shape in _level_shapes(batch, size, channels, strides)]
            got = [tuple(item.shape) for item in _outputs(decoder, levels)]
            if [shape[:2] for shape in got] != [(batch, c) for c in kept]:
                broken("batch and channels of the decoder's levels", got, f".channels = {kept}")
            shapes = _level_shapes(batch, size, kept, own)
            if got != shapes:
                broken("shapes of the decoder's levels", got, f"{shapes}, finest first")
            _check_outputs(decoder, levels, shapes)
    _check_weights(decoder, levels)


@seeded
def check_network(
    network: nn.Module,
    in_channels: int,
    classes: int,
    sizes: Sequence[Size] = ((32, 32, 32), (64, 32, 32)),
) -> None:
    """Check a whole network, made as `network(in_channels=..., classes=..., **options)`.

    `forward` maps (N, in_channels, I, J, K) to raw logits (N, classes, I, J, K), or to a tuple or
    list (logits, *auxiliary), where auxiliary logits have the same classes and any size. Logits
    are raw: no softmax, no sigmoid.

    A network that sees context from outside the patch may keep `.margin`, three numbers (i, j, k)
    of voxels: its input is then larger than its logits by the margin on each side of each axis.
    Training cuts its patches, and prediction its windows, with that margin, out of the volume.

    Args:
        network: The network, built with small options.
        in_channels: What it was built with.
        classes: What it was built with.
        sizes: Sizes of the logits to try, in voxels (i, j, k).

    Raises:
        PluginError: It breaks the contract.
    """
    margin = getattr(network, "margin", (0, 0, 0))
    if len(margin) != 3 or any(not isinstance(m, int) or m < 0 for m in margin):
        broken("network.margin", margin, "three voxel counts from 0, (i, j, k)")
    for size in sizes:
        whole = [n + 2 * m for n, m in zip(size, margin, strict=True)]
        for batch in (2, 1):
            x = torch.rand(batch, in_channels, *whole)
            out = _outputs(network, x)
            if tuple(out[0].shape) != (batch, classes, *size):
                broken("shape of the logits", tuple(out[0].shape), (batch, classes, *size))
            got = [tuple(item.shape[:2]) for item in out]
            if set(got) != {(batch, classes)}:
                broken("batch and classes of all outputs", got, (batch, classes))
            _check_outputs(network, x, [tuple(item.shape) for item in out])
    with torch.no_grad():
        first = _outputs(copy.deepcopy(network).eval(), 10 * torch.randn(2, in_channels, *whole))[0]
    total = first.sum(1)
    if classes > 1 and first.min() >= 0 and torch.allclose(total, torch.ones_like(total)):
        broken("the network's output", "probabilities", "raw logits")
    _check_weights(network, torch.rand(2, in_channels, *whole))


def _channels(module: nn.Module) -> tuple[int, ...]:
    channels = getattr(module, "channels", None)
    if not isinstance(channels, Sequence) or not all(isinstance(c, int) for c in channels):
        broken(f"{type(module).__name__}.channels", channels, "one int per level, finest first")
    return tuple(channels)


def _strides(kind: str, strides: Any, levels: int) -> tuple[Size, ...]:
    if not isinstance(strides, Sequence) or len(strides) != levels:
        broken(f"{kind}.strides", strides, f"three numbers for each of {levels} levels")
    for fine, coarse in zip([(1, 1, 1), *strides], strides, strict=False):
        if len(coarse) != 3 or any(c < 1 or c % f for f, c in zip(fine, coarse, strict=True)):
            broken(f"{kind}.strides", strides, "three numbers, multiples of the level before")
    return tuple(strides)


def _level_shapes(
    batch: int, size: Size, channels: Sequence[int], strides: Sequence[Sequence[int]]
) -> Shapes:
    return [
        (batch, c, *(n // s for n, s in zip(size, stride, strict=True)))
        for c, stride in zip(channels, strides, strict=True)
    ]


def _auxiliary_shapes(encoder: nn.Module, x: Tensor, levels: Shapes) -> Shapes:
    """Shapes of an encoder's auxiliary maps; its levels have to be those that `forward` gives."""
    channels = tuple(getattr(encoder, "auxiliary_channels", ()))
    if not channels:
        return []
    weight = getattr(encoder, "auxiliary_weight", 0.3)
    if not isinstance(weight, int | float) or not 0 <= weight < math.inf:
        broken("encoder.auxiliary_weight", weight, "a number from 0")
    for mode in ("train", "eval"):
        trial = copy.deepcopy(encoder).train(mode == "train")
        with torch.no_grad():
            alone, (found, maps) = list(trial(x)), _both(trial, x)
        if [tuple(item.shape) for item in alone] != levels:
            broken(f"shapes of forward in {mode} mode", [tuple(i.shape) for i in alone], levels)
        if len(found) != len(alone) or (mode == "eval" and not equal(found, alone)):
            broken(f"levels of with_auxiliary in {mode} mode", "others", "those of forward")
        got = [tuple(item.shape) for item in maps]
        if [shape[:2] for shape in got] != [(len(x), c) for c in channels] or any(
            len(shape) != 5 for shape in got
        ):
            broken("shapes of the auxiliary maps", got, f".auxiliary_channels = {channels}")
    return got


def _sizes(stride: Sequence[int]) -> list[Size]:
    i, j, k = stride
    return [(2 * i, 2 * j, 2 * k), (2 * i, 3 * j, 2 * k)]


def _both(encoder: nn.Module, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    out = encoder.with_auxiliary(x)  # type: ignore[operator]
    if not isinstance(out, tuple) or [type(part) for part in out] != [list, list]:
        broken("the result of with_auxiliary", type(out).__name__, "(levels, auxiliary maps)")
    return out


def _call(module: nn.Module, inputs: Any) -> Any:
    """All that a module gives: its output, with the auxiliary maps where an encoder has some."""
    if getattr(module, "auxiliary_channels", ()):
        levels, maps = _both(module, inputs)
        return [*levels, *maps]
    return module(inputs)


def _outputs(module: nn.Module, inputs: Any) -> list[Tensor]:
    out = _call(copy.deepcopy(module), inputs)
    out = [out] if isinstance(out, Tensor) else out
    if not isinstance(out, list | tuple) or not all(isinstance(item, Tensor) for item in out):
        broken(f"the result of {type(module).__name__}", type(out).__name__, "tensors")
    return list(out)


def _check_outputs(module: nn.Module, inputs: Any, shapes: Shapes) -> None:
    """Check shapes, finiteness, determinism and untouched inputs, in training and evaluation."""
    name = type(module).__name__
    for mode in ("train", "eval"):
        trial, kept = copy.deepcopy(module).train(mode == "train"), copy.deepcopy(inputs)
        with torch.no_grad():
            out = _outputs(trial, inputs)
            if not equal(inputs, kept):
                broken(f"the input of {name}", "changed in place", "left as it was")
            again = _outputs(trial, inputs)
        got = [tuple(item.shape) for item in out]
        if got != shapes:
            broken(f"shapes that {name} gives in {mode} mode", got, shapes)
        if not all(item.isfinite().all() for item in out):
            broken(f"outputs of {name} in {mode} mode", "NaN or infinity", "finite numbers")
        if mode == "eval" and not equal(out, again):
            broken(f"outputs of {name} in eval mode", "others each time", "the same")


def _check_weights(module: nn.Module, inputs: Any) -> None:
    """Check gradients, and that weights are saved once, restored in full and copied apart."""
    name, trial = type(module).__name__, copy.deepcopy(module).train()
    out = _call(trial, inputs)
    out = [out] if isinstance(out, Tensor) else out
    total = torch.stack([(item * torch.rand_like(item)).sum() for item in out]).sum()
    if total.requires_grad:  # a decoder may have no weights at all
        total.backward()  # type: ignore[no-untyped-call]
    idle = [n for n, p in trial.named_parameters() if p.requires_grad and p.grad is None]
    if idle:
        broken(f"weights of {name} without a gradient", idle, "none")
    module = copy.deepcopy(module).eval()
    state = module.state_dict()
    places: dict[int, str] = {}
    for key, value in state.items():
        first = places.setdefault(value.data_ptr(), key)
        if first != key and value.numel():
            broken(f"a weight of {name} saved twice", f"{first} and {key}", "one name")
    before = _outputs(module, inputs)
    twin = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1)
    if not equal(before, _outputs(module, inputs)):
        broken(f"{name} after a change of its copy", "other outputs", "a copy that stands alone")
    try:
        twin.load_state_dict(state)
    except RuntimeError as error:
        broken(f"{name} after loading a saved state", error, "no error")
    if not equal(before, _outputs(twin, inputs)):
        broken(f"{name} after loading a saved state", "other outputs", "the same outputs")
    _check_layout(module, inputs, before)


def _check_layout(module: nn.Module, inputs: Any, expected: list[Tensor]) -> None:
    """Check that a channels-last module, as networks predict, gives what the other one does."""
    name, layout = type(module).__name__, torch.channels_last_3d
    turned = copy.deepcopy(module).to(memory_format=layout)  # type: ignore[call-overload]
    many = inputs if isinstance(inputs, list) else [inputs]
    last = [x.contiguous(memory_format=layout) if x.dim() == 5 else x for x in many]
    try:
        with torch.no_grad():
            got = _outputs(turned, last if isinstance(inputs, list) else last[0])
    except RuntimeError as error:
        broken(f"{name} in channels-last layout", error, "no error (.reshape takes any layout)")
    for ours, theirs in zip((out.detach() for out in expected), got, strict=True):
        if not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3 * ours.abs().max().item()):
            broken(f"outputs of {name} in channels-last layout", "others", "the same")
