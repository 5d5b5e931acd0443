"""An encoder with the classifier that its paper puts on top.

It is no component of a segmentation model, but the way to check an encoder against the figures of
its paper, and to take over a pretrained classifier whole. From Python:

    encoder = ENCODERS.build({"name": "vgg", "config": "D", "norm": "none"}, in_channels=3)
    vgg16 = Classifier(
        encoder, 1000, hidden=(4096, 4096), kernel=(7, 7, 7), pool=(2, 2, 2), dropout=0.5
    )
    googlenet = Classifier(inception, 1000, dropout=0.4)
    resnet18 = Classifier(resnet, 1000)
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from medseg.errors import ConfigError
from medseg.networks.blocks import ONE, Triple


class Classifier(nn.Module):
    """An encoder, a pooling of its coarsest level, then fully connected layers.

    The layers are convolutions, so that one pass over a large volume gives a map of class scores
    (Sermanet et al. 2014, arXiv:1312.6229; Long et al. 2015, arXiv:1411.4038). ReLU and dropout
    follow each hidden layer; without hidden layers, dropout stands before the only one.

    Args:
        encoder: An encoder that keeps its contract (`medseg.testing.check_encoder`).
        classes: Channels of the output.
        hidden: Widths of the hidden layers; (4096, 4096) in VGG.
        kernel: Kernel of the first layer, (i, j, k); (7, 7, 7) in VGG. It is not padded.
        pool: Max pooling before the first layer, (i, j, k); (2, 2, 2) in VGG. None: the average
            over the whole map (Lin et al. 2014, arXiv:1312.4400), as in GoogLeNet and ResNet.
        dropout: Probability of dropping a number; 0.5 in VGG, 0.4 in GoogLeNet.

    Raises:
        ConfigError: The encoder does not tell its channels.
    """

    def __init__(
        self,
        encoder: nn.Module,
        classes: int,
        *,
        hidden: tuple[int, ...] = (),
        kernel: Triple = ONE,
        pool: Triple | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        channels: Sequence[int] = getattr(encoder, "channels", ())
        if not channels:
            raise ConfigError(
                f"{type(encoder).__name__} has no .channels: give an encoder, got something else"
            )
        self.encoder = encoder
        self.kernel = kernel
        self.pool = nn.AdaptiveAvgPool3d(1) if pool is None else nn.MaxPool3d(pool)
        self.layers = nn.Sequential() if hidden else nn.Sequential(nn.Dropout(dropout))
        width_in = channels[-1]
        for width in hidden:
            self.layers.append(nn.Conv3d(width_in, width, kernel))
            self.layers.extend([nn.ReLU(inplace=True), nn.Dropout(dropout)])
            width_in, kernel = width, ONE
        self.layers.append(nn.Conv3d(width_in, classes, kernel))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, I, J, K) to raw class scores (N, classes, I', J', K').

        The map has one voxel where the whole input is averaged, or is as large as `kernel` once
        it is pooled.

        Raises:
            ConfigError: The pooled map is smaller than `kernel`.
        """
        pooled: Tensor = self.pool(self.encoder(x)[-1])
        size = tuple(pooled.shape[2:])
        if any(n < k for n, k in zip(size, self.kernel, strict=True)):
            raise ConfigError(
                f"an input of {tuple(x.shape[2:])} voxels leaves {size} for the classifier, whose "
                f"kernel is {self.kernel}: give a larger input"
            )
        scores: Tensor = self.layers(pooled)
        return scores

    def layouts(self) -> dict[str, dict[str, str]]:
        """Names of the modules with weights in other libraries: the encoder's, and torchvision's.

        A fully connected layer of torchvision has its kernel as columns of a matrix: channels
        first, then the kernel's axes.
        """
        of_encoder: dict[str, dict[str, str]] = getattr(self.encoder, "layouts", dict)()
        names = {
            layout: {f"encoder.{mine}": theirs for mine, theirs in modules.items()}
            for layout, modules in of_encoder.items()
        }
        if "torchvision" in names:
            places = [n for n, m in self.layers.named_children() if isinstance(m, nn.Conv3d)]
            alone = len(places) == 1
            names["torchvision"] |= {
                f"layers.{place}": "fc" if alone else f"classifier.{place}" for place in places
            }
        return names
