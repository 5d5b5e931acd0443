"""The training cases as medseg preprocesses them, in the peers' files: all get the same input."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medseg.training.setup import Setup
from medseg.volumes.load import load_case

Paths = dict[str, str]


def store(setup: Setup, folder: Path) -> int:
    """Write NumPy files for MONAI and Blosc2 files for nnU-Net; returns the number of cases."""
    from nnunetv2.training.dataloading.nnunet_dataset import (
        comp_blosc2_params,
        nnUNetDatasetBlosc2,
    )

    for name in ("monai", "nnunet/3d_fullres"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    by_id = {case.id: case for case in setup.dataset.cases}
    for case in setup.ids.train:
        prepared = setup.preprocessor(load_case(by_id[case], setup.dataset))
        assert prepared.label is not None
        image, label = prepared.image.astype(np.float32), prepared.label.astype(np.uint8)
        np.save(folder / "monai" / f"{case}_image.npy", image)
        np.save(folder / "monai" / f"{case}_label.npy", label)
        places = {
            n: np.insert(np.argwhere(label == n), 0, 0, axis=1) for n in range(1, setup.classes)
        }
        blocks, chunks = comp_blosc2_params(image.shape, setup.config.train.patch)
        nnUNetDatasetBlosc2.save_case(
            image, label[None].astype(np.int16), {"class_locations": places},
            str(folder / "nnunet" / "3d_fullres" / case), chunks=chunks, blocks=blocks,
        )  # fmt: skip
    return len(setup.ids.train)


def for_monai(setup: Setup, folder: Path) -> list[Paths]:
    """The cases that `store` wrote."""
    return [
        {key: str(folder / "monai" / f"{case}_{key}.npy") for key in ("image", "label")}
        for case in setup.ids.train
    ]
