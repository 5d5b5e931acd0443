"""DeepMedic (Kamnitsas et al. 2017, doi:10.1016/j.media.2016.10.004), a network of several scales.

Numbers without another source are those of its code, version 0.8.4.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from medseg.errors import ConfigError
from medseg.networks.blocks import ONE, THREE, Triple
from medseg.networks.stages import check_positive, per_stage
from medseg.registry import NETWORKS
from medseg_plugins.deepmedic_blocks import Layer, Residuals, Sampling, sample
from medseg_plugins.deepmedic_import import described, state
from medseg_plugins.deepmedic_joint import Edges, Join, Joint

_LONGEST_JOIN = 3  # of a kernel over all pathways' maps


@NETWORKS.register("deepmedic")
class DeepMedic(nn.Module):
    """Pathways at several resolutions, side by side; layers over all their maps give the logits.

    Every pathway has the same valid convolutions, and so sees a field of 17 samples (with the
    default kernels) around each voxel: 17 voxels of the image, 51 of every third, 85 of every
    fifth. `margin` is the context that it needs for this beyond the patch. Outputs of a coarse
    pathway stand for blocks of `factor` voxels, counted from the patch's corner: windows that begin
    at multiples of all factors (15, by default) see the same blocks.

    With 2 channels and 5 classes, the presets have 0.66 million weights (`deepmedic_paper`:
    kernels, biases, norms and PReLUs), 2.01 (`deepmedic`, as code 0.8.4 has it) and 5.14
    (`deepmedic_wide`, its configuration of that name).

    Args:
        in_channels: Channels of the input.
        classes: Channels of the output, background included.
        factors: Of each pathway, how many voxels a sample stands for, per axis; the first 1.
        widths: Channels of each layer of a pathway.
        coarse_widths: Widths of each pathway after the first. Null: `widths`.
        kernels: Kernel of each layer of a pathway, per axis, odd. Null: 3x3x3.
        residual: Layers of a pathway, counted from 1, that add what entered the layer before.
        hidden: Widths of the layers over all pathways' maps, before the last, which gives classes.
        hidden_kernel: Kernel of the first of these, per axis, 1 or 3; the others are 1x1x1.
        hidden_residual: Which of these add what entered the layer before, counted from 1.
        dropout: Probability of dropping a number of the input of each of these layers, the last
            included; one number each.
        edges: What the first of these sees beyond the patch: "reflect", the maps mirrored as in
            code 0.8.4, or "context", more of the image (then a voxel's logits do not depend on how
            far the patch's border is).
        sampling: How a coarse pathway sees the image: "pick" takes the first voxel of each block,
            as code 0.8.4 does, "mean" the block's mean.
    """

    def __init__(  # noqa: PLR0913 (the options are the schema)
        self,
        in_channels: int,
        classes: int,
        *,
        factors: tuple[Triple, ...] = ((1, 1, 1), (3, 3, 3), (5, 5, 5)),
        widths: tuple[int, ...] = (30, 30, 40, 40, 40, 40, 50, 50),
        coarse_widths: tuple[tuple[int, ...], ...] | None = None,
        kernels: tuple[Triple, ...] | None = None,
        residual: tuple[int, ...] = (4, 6, 8),
        hidden: tuple[int, ...] = (250, 250),
        hidden_kernel: Triple = (3, 3, 3),
        hidden_residual: tuple[int, ...] = (2,),
        dropout: tuple[float, ...] = (0.0, 0.5, 0.5),
        edges: Edges = "reflect",
        sampling: Sampling = "pick",
    ) -> None:
        super().__init__()
        check_positive("widths", *widths)
        check_positive("hidden", *hidden)
        shapes = _odd("kernels", per_stage("kernels", kernels, [THREE] * len(widths)))
        _odd("hidden_kernel", [hidden_kernel])
        if max(hidden_kernel) > _LONGEST_JOIN:
            raise ConfigError(
                f"hidden_kernel must be 1 or 3 long, got {hidden_kernel}", ("hidden_kernel",)
            )
        self.factors = _checked_factors(factors)
        self.sampling = sampling
        self.reach = _triple(sum(shape[axis] // 2 for shape in shapes) for axis in range(3))
        paths = _widths_of_paths(len(factors), widths, coarse_widths)
        self.pathways = nn.ModuleList(
            Residuals(
                [
                    Layer(width_in, width, shape, raw=n == 0)
                    for n, (width_in, width, shape) in enumerate(
                        zip((in_channels, *path), path, shapes, strict=False)
                    )
                ],
                _checked_residual("residual", residual, len(widths)),
            )
            for path in paths
        )
        ends = (sum(path[-1] for path in paths), *hidden, classes)
        if len(dropout) != len(hidden) + 1 or not all(0 <= rate < 1 for rate in dropout):
            raise ConfigError(
                f"dropout needs a number from 0 to below 1 for each of {len(hidden) + 1} layers, "
                f"got {dropout}",
                ("dropout",),
            )
        join = Join(
            [path[-1] for path in paths], ends[1], hidden_kernel, factors=self.factors,
            edges=edges, dropout=dropout[0], is_last=not hidden,
        )  # fmt: skip
        self.seen = join.seen
        last = len(hidden)
        layers = [
            Layer(ends[n], ends[n + 1], ONE, dropout=dropout[n], is_last=n == last)
            for n in range(1, last + 1)
        ]
        self.joint = Joint(
            join, layers, _checked_residual("hidden_residual", hidden_residual, last)
        )
        self.margin = _triple(self._margin(axis) for axis in range(3))

    @classmethod
    def described(cls, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], tuple[str, ...]]:
        """A config for the network of a checkpoint of DeepMedic's, and what was assumed.

        Raises:
            ValueError: The tensors are of another program, or incomplete.
        """
        return described(tensors)

    def translated(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """The weights of a checkpoint of DeepMedic's by the names here; None: it is none.

        Raises:
            ValueError: It is incomplete, or of a network with other layers.
        """
        return state(tensors, self)

    def _margin(self, axis: int) -> int:
        """Voxels that the pathways see beyond the patch on both sides of an axis."""
        return max(
            (self.reach[axis] + self.seen[axis]) * factor[axis]
            + (factor[axis] - 1 if self.sampling == "mean" else 0)
            for factor in self.factors
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, I + 2 mi, J + 2 mj, K + 2 mk) to logits (N, classes, I, J, K).

        Raises:
            ConfigError: The input is not larger than its margins.
        """
        size = _triple(n - 2 * m for n, m in zip(x.shape[2:], self.margin, strict=True))
        if min(size) < 1:
            raise ConfigError(
                f"an input of {tuple(x.shape[2:])} voxels has nothing between its margins of "
                f"{self.margin} voxels on either side: give more than twice these"
            )
        maps = [
            pathway(self._sampled(x, factor, size))
            for pathway, factor in zip(self.pathways, self.factors, strict=True)
        ]
        return self.joint(maps, size)  # type: ignore[no-any-return]

    def _sampled(self, x: Tensor, factor: Triple, size: Triple) -> Tensor:
        """What a pathway sees of the image."""
        first, count = [], []
        for n, step, reach, seen, margin in zip(
            size, factor, self.reach, self.seen, self.margin, strict=True
        ):
            first.append(margin - (reach + seen) * step)
            count.append((n - 1 + seen) // step + 1 + seen + 2 * reach)
        return sample(x, factor, _triple(first), _triple(count), self.sampling)


def _triple(numbers: Iterable[int]) -> Triple:
    i, j, k = numbers
    return i, j, k


def _odd(option: str, shapes: Sequence[Triple]) -> Sequence[Triple]:
    if any(length < 1 or length % 2 == 0 for shape in shapes for length in shape):
        raise ConfigError(f"{option} must be odd, got {tuple(shapes)}", (option,))
    return shapes


def _checked_factors(factors: Sequence[Triple]) -> tuple[Triple, ...]:
    if not factors or factors[0] != ONE or any(step < 1 for f in factors for step in f):
        raise ConfigError(
            f"factors must begin with {ONE} and be at least 1, got {tuple(factors)}", ("factors",)
        )
    return tuple(factors)


def _checked_residual(option: str, numbers: Sequence[int], layers: int) -> Sequence[int]:
    if any(not 2 <= number <= layers for number in numbers):
        raise ConfigError(
            f"{option} must be layers from 2 (none comes before the first) to {layers}, got "
            f"{tuple(numbers)}",
            (option,),
        )
    return numbers


def _widths_of_paths(
    paths: int, widths: tuple[int, ...], coarse: tuple[tuple[int, ...], ...] | None
) -> list[tuple[int, ...]]:
    """Each pathway's widths."""
    coarse = (widths,) * (paths - 1) if coarse is None else coarse
    if len(coarse) != paths - 1 or any(len(path) != len(widths) for path in coarse):
        raise ConfigError(
            f"coarse_widths needs {len(widths)} widths for each of {paths - 1} pathways (all of "
            f"factors but the first), got {coarse}",
            ("coarse_widths",),
        )
    for path in coarse:
        check_positive("coarse_widths", *path)
    return [widths, *coarse]


NETWORKS.preset(
    "deepmedic_paper",
    "deepmedic",
    factors=((1, 1, 1), (3, 3, 3)),
    residual=(),
    hidden=(150, 150),
    hidden_kernel=(1, 1, 1),
    hidden_residual=(),
)
NETWORKS.preset(
    "deepmedic_wide", "deepmedic", widths=(30, 40, 50, 60, 70, 80, 90, 100), hidden=(300, 300)
)
