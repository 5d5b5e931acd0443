"""Boxes from other patches, and channels that miss."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from medseg.config.schema import Augment
from medseg.transforms import augment
from medseg.transforms.augment import Draw

SHAPE = (12, 10, 8)


def drawn(samples: int = 4, channels: int = 2, seed: int = 0, **options: Any) -> Draw:
    settings = Augment(**{"affine": 0.0, **options})
    return augment.draw(settings, samples, channels, torch.Generator().manual_seed(seed))


def batch(samples: int, channels: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    image = torch.randn(samples, channels, *SHAPE, generator=generator)
    return image, torch.randint(4, (samples, *SHAPE), generator=generator)


def test_every_voxel_is_of_one_of_two_patches_in_image_and_label() -> None:
    image, label = batch(4)
    before = image.clone(), label.clone()
    change = drawn(mix=1.0)
    mixed, target = augment.mix(change, image, label)
    assert torch.equal(image, before[0])
    assert torch.equal(label, before[1])
    for n, partner in enumerate(change.partner.tolist()):
        assert partner != n
        is_other = (mixed[n] == image[partner]).all(0)
        assert torch.equal(mixed[n][:, ~is_other], image[n][:, ~is_other])
        assert torch.equal(target[n], torch.where(is_other, label[partner], label[n]))
        inside = is_other.nonzero()
        if len(inside):
            edges = inside.amax(0) - inside.amin(0) + 1
            assert len(inside) == int(edges.prod())  # a box


def test_a_box_has_the_voxels_that_were_drawn() -> None:
    image, label = batch(2)
    box = torch.tensor([[[0.25, 0.75], [0.0, 0.5], [0.5, 1.0]]]).repeat(2, 1, 1)
    change = replace(drawn(2, mix=1.0), box=box, partner=torch.tensor([1, 1]))
    mixed, target = augment.mix(change, image, label)
    expected = image.clone()
    expected[0, :, 3:9, :5, 4:] = image[1, :, 3:9, :5, 4:]
    assert torch.equal(mixed, expected)
    assert torch.equal(target[0, 3:9, :5, 4:], label[1, 3:9, :5, 4:])
    assert torch.equal(target[1], label[1])


def test_boxes_lie_inside_and_take_at_most_their_share() -> None:
    change = drawn(500, mix=0.5, mix_share=0.3)
    begin, end = change.box.unbind(2)
    assert float(begin.min()) >= 0
    assert float(end.max()) <= 1 + 1e-6
    share = (end - begin).prod(1)
    assert 0.25 < float(share.max()) <= 0.3 + 1e-6
    is_mixed = change.partner != torch.arange(500)
    assert 0.42 < float(is_mixed.float().mean()) < 0.58


def test_partners_are_drawn_evenly_from_the_others() -> None:
    partners = torch.stack([drawn(3, seed=n, mix=1.0).partner for n in range(200)])
    for n in range(3):
        counts = torch.bincount(partners[:, n], minlength=3)
        assert int(counts[n]) == 0
        assert 70 < int(counts[(n + 1) % 3]) < 130


def test_one_patch_has_nobody_to_mix_with() -> None:
    image, label = batch(1)
    mixed, target = augment.mix(drawn(1, mix=1.0), image, label)
    assert torch.equal(mixed, image)
    assert torch.equal(target, label)


def test_ignored_voxels_are_pasted_as_such() -> None:
    image, label = batch(2)
    label[1] = 255
    change = replace(drawn(2, mix=1.0), box=torch.tensor([[[0.0, 0.5]] * 3] * 2))
    target = augment.mix(change, image, label)[1]
    assert bool((target[0, :6, :5, :4] == 255).all())
    assert int((target[0] == 255).sum()) == 6 * 5 * 4


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("probability", [0.3, 1.0])
def test_dropped_channels_are_zero_and_one_is_kept(channels: int, probability: float) -> None:
    image, _ = batch(50, channels)
    change = drawn(50, channels, channel_dropout=probability)
    out = augment.drop_channels(change, image)
    gone = (out == 0).all(4).all(3).all(2)
    assert torch.equal(gone, ~change.is_kept)
    assert bool((~gone).any(1).all())
    assert torch.equal(out[~gone], image[~gone])
    if probability == 1:
        assert bool(((~gone).sum(1) == 1).all())
    elif channels > 1:
        assert bool(gone.any())


def test_the_channel_that_is_kept_is_drawn_evenly() -> None:
    kept = drawn(600, 3, channel_dropout=1.0).is_kept
    assert bool((kept.sum(0) > 150).all())


def test_a_missing_channel_is_exactly_zero_whatever_else_is_done() -> None:
    image, label = batch(4)
    change = drawn(4, channel_dropout=1.0, mix=1.0, brightness=0.5, noise=0.5, noise_probability=1)
    out, _ = augment.apply(change, image, label, torch.ones(4, 3))
    assert bool((out[~change.is_kept] == 0).all())
    assert bool((out[change.is_kept] != 0).any())


def test_a_channel_that_a_partner_lacks_is_lent_as_zero() -> None:
    image, label = batch(2)
    box = torch.tensor([[[0.25, 0.75], [0.0, 0.5], [0.5, 1.0]]]).repeat(2, 1, 1)
    change = drawn(2, mix=1.0, brightness=0.5, contrast=0.5)
    change = replace(change, box=box, partner=torch.tensor([1, 1]))
    present = torch.tensor([[True, True], [True, False]])
    spacing = torch.ones(2, 3)
    whole, _ = augment.apply(change, image, label, spacing)
    mixed, _ = augment.apply(change, image, label, spacing, present)
    assert not mixed[1, 1].any()
    assert not mixed[0, 1, 3:9, :5, 4:].any()
    mixed[0, 1, 3:9, :5, 4:], mixed[1, 1] = whole[0, 1, 3:9, :5, 4:], whole[1, 1]
    torch.testing.assert_close(mixed, whole)
