"""GoogLeNet whole, with its three classifiers (Szegedy et al. 2014, arXiv:1409.4842)."""

from __future__ import annotations

from torch import Tensor, nn

from medseg.errors import ConfigError
from medseg.networks.blocks import Triple
from medseg.networks.stages import flatten
from medseg_plugins.classifier import Classifier
from medseg_plugins.inception import InceptionEncoder

HIDDEN = 1024  # section 5, as the numbers below
DROPOUT = 0.4
AUXILIARY_DROPOUT = 0.7


class GoogLeNet(Classifier):
    """The encoder under global average pooling, dropout and one fully connected layer.

    Each of the encoder's auxiliary heads gets an auxiliary classifier: average pooling 5 long with
    step 3, the head's 1x1x1 convolution, a fully connected layer of 1024, dropout, another of
    `classes` (section 5). Like `Classifier` it is for checks against the paper and for classifying
    whole volumes, from Python:

        encoder = ENCODERS.build({"name": "googlenet", "norm": "none"}, in_channels=3)
        scores, auxiliary = GoogLeNet(encoder, 1000).with_auxiliary(x)

    Args:
        encoder: The encoder "inception".
        classes: Channels of the outputs.
        kernel: Kernel of the auxiliary classifiers' first fully connected layer, (i, j, k), 1 along
            an axis that is not pooled. The paper's inputs, 224 long, leave 4.
    """

    encoder: InceptionEncoder

    def __init__(
        self, encoder: InceptionEncoder, classes: int, *, kernel: Triple = (4, 4, 4)
    ) -> None:
        super().__init__(encoder, classes, dropout=DROPOUT)
        self.auxiliary_kernel = kernel
        self.auxiliary_pool = nn.AvgPool3d(flatten(kernel, 5), flatten(kernel, 3))
        self.auxiliary_layers = nn.ModuleDict(
            {
                name: nn.Sequential(
                    nn.Conv3d(width, HIDDEN, kernel),
                    nn.ReLU(inplace=True),
                    nn.Dropout(AUXILIARY_DROPOUT),
                    nn.Conv3d(HIDDEN, classes, 1),
                )
                for name, width in zip(encoder.auxiliary, encoder.auxiliary_channels, strict=True)
            }
        )

    def with_auxiliary(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Map (N, in_channels, I, J, K) to raw scores (N, classes, 1, 1, 1) and auxiliary ones.

        Raises:
            ConfigError: The input is too small for the auxiliary classifiers.
        """
        maps = self.encoder.features(x)
        auxiliary = []
        for name, layers in self.auxiliary_layers.items():
            head = self.encoder.auxiliary[name](self.auxiliary_pool(maps[name]))
            if any(n < k for n, k in zip(head.shape[2:], self.auxiliary_kernel, strict=True)):
                raise ConfigError(
                    f"an input of {tuple(x.shape[2:])} voxels leaves {tuple(head.shape[2:])} for "
                    f"the auxiliary classifiers, whose kernel is {self.auxiliary_kernel}: give a "
                    "larger input or a smaller kernel"
                )
            auxiliary.append(layers(head))
        return self.layers(self.pool(maps["5b"])), auxiliary

    def layouts(self) -> dict[str, dict[str, str]]:
        """As the encoder's and, where its modules have foreign names, the classifiers'."""
        names = super().layouts()
        if "caffe" not in names:
            return names
        names["caffe"]["layers.1"] = "loss3/classifier"
        for number, name in enumerate(self.auxiliary_layers, 1):
            own = f"auxiliary_layers.{name}"
            names["torchvision"] |= {f"{own}.0": f"aux{number}.fc1", f"{own}.3": f"aux{number}.fc2"}
            names["caffe"] |= {
                f"{own}.0": f"loss{number}/fc",
                f"{own}.3": f"loss{number}/classifier",
            }
        return names
