"""Image and label at any places: as torch's `grid_sample`, which goes voxel by voxel."""

from __future__ import annotations

import pytest
import torch

from medseg.transforms.augment.interpolate import _by_grid, interpolate


@pytest.mark.parametrize("shape", [(9, 14, 6), (1, 5, 7), (4, 1, 1), (2, 2, 2)])
@pytest.mark.parametrize("channels", [1, 3])
def test_it_is_what_grid_sample_gives(shape: tuple[int, int, int], channels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(channels, *shape, generator=generator)
    label = torch.randint(0, 256, shape, generator=generator).to(torch.uint8)
    size = torch.tensor(shape)[:, None, None, None]
    places = torch.rand(3, 6, 5, 8, generator=generator) * (size + 6) - 3.5  # far outside as well
    images, labels = interpolate(image, label, places.clone())
    expected, nearest = _by_grid(image, label, places.clone())
    torch.testing.assert_close(images, expected, rtol=0, atol=2e-5)
    assert torch.equal(labels, nearest)
    assert (labels.dtype, images.dtype) == (label.dtype, image.dtype)


def test_where_a_voxel_lies_it_is_that_voxel() -> None:
    image, label = torch.randn(2, 5, 6, 7), torch.randint(0, 9, (5, 6, 7))
    ranges = (torch.arange(n, dtype=torch.float32) for n in label.shape)
    places = torch.stack(torch.meshgrid(*ranges, indexing="ij"))
    images, labels = interpolate(image, label, places)
    assert torch.equal(images, image)
    assert torch.equal(labels, label)
