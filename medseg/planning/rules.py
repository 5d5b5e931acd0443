"""Every number that a plan is made by, with where it is from: the one place to change them.

A source is a paper, a recipe in configs/ that was tuned by hand (the README has its accuracy),
or "judgement", where nobody has measured.
"""

from __future__ import annotations

from dataclasses import dataclass

# -- the grid -------------------------------------------------------------------------------------
# nnU-Net's planner: Isensee et al. 2021, doi:10.1038/s41592-020-01008-z, supplement.
THICK = 3.0  # slices are thick where their distance is more than so many times the other axes'
THICK_PERCENTILE = 10  # of the spacing along that axis, instead of the median
COARSE = 2.0  # an axis so many times coarser than the finest is neither halved nor convolved yet
LEAST_MAP = 4  # voxels of the coarsest map along an axis

# -- the network ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Size:
    """A network and the patches that it is trained on.

    Args:
        name: For the comment.
        widths: Channels by level; the first ones of them, as deep as the patch allows.
        halves_first: Whether the first convolution halves the grid already: an eighth of the work.
        voxels: Of the largest patch.
        lr: Peak learning rate.
        least_steps: Optimiser steps below which a smaller network learns more in the same time.
        source: Where it is from.
    """

    name: str
    widths: tuple[int, ...]
    halves_first: bool
    voxels: int
    lr: float
    least_steps: int
    source: str


SMALL = Size(
    "small", (32, 64, 128), halves_first=True, voxels=48**3, lr=1e-2, least_steps=0,
    source="configs/sts_pet.yaml, brats2015_deepmedic.yaml",
)  # fmt: skip
FINE = Size(
    "fine", (16, 32, 64, 128), halves_first=False, voxels=48**3, lr=1e-2, least_steps=400,
    source="configs/hippocampus.yaml",
)  # fmt: skip
MEDIUM = Size(
    "medium", (32, 64, 128, 256, 320), halves_first=True, voxels=96**3, lr=2.5e-3,
    least_steps=4_000, source="judgement",
)  # fmt: skip
LARGE = Size(  # widths of nnU-Net; its ResEnc presets: Isensee et al. 2024, arXiv:2404.09556
    "large", (32, 64, 128, 256, 320, 320), halves_first=False, voxels=128**3, lr=1e-3,
    least_steps=20_000, source="nnU-Net, configs/msd_lung.yaml",
)  # fmt: skip
SIZES = (SMALL, FINE, MEDIUM, LARGE)  # the next is tried while the budget has its steps
# Lesions that are on average fewer voxels across are lost on a grid that is halved at once. Those
# of the demo's phantoms are 5.5, and are found by a network that halves: medseg/demo.yaml.
LEAST_ACROSS = 4.0
MOST_SUPERVISED = 2  # coarser levels with a loss of their own: configs/msd_lung.yaml

DECAY = 0.1  # of weights: as good as 0.01 on hippocampus and PET, or better

# -- patches --------------------------------------------------------------------------------------
BATCH = 2  # nnU-Net's least; all hand-made recipes
MOST_BATCH = 16
LEAST_STEP = 2 * 32 * 48 * 32  # voxels of a step, below which a batch holds more: hippocampus.yaml
CUT = 0.15  # of a volume's length that a patch may lack for a size that the network takes
LEAST_PATCH = 16  # voxels along the longest axis of a patch: judgement
SHRINK = 0.6  # of a patch's voxels, where a trial took too much memory
WHOLE = 0.5  # a patch with this share of the volume sees lesions without being sent to them
LESION_SHARE = 0.5  # of patches around a lesion otherwise: DeepMedic, brats2015_deepmedic.yaml
RARE = 20.0  # a class so many times rarer than the commonest gets as many patches as that one
PRIOR_CORRECTION = 0.25  # of what such patches make lesions too common by: brats2015_deepmedic.yaml

# -- intensities ----------------------------------------------------------------------------------
STRIPPED = 0.25  # share of voxels of one value, from which the background is known to be blank
OUTSIDE = 5e-3  # share of labelled voxels that may lie on it and be lost: judgement
CROPPED = 0.75  # share of the volume that a crop has to come below to be worth it: judgement
CT_PERCENTS = (0.5, 99.5)  # of labelled voxels, that the window reaches between: nnU-Net
CT_STEP = 5.0  # HU that its ends are rounded to
PET_PERCENT = 95.0  # of labelled voxels, that the window reaches up to: sts_pet.yaml, by 1 SUV
PET_LEAST = 5.0  # SUV that it reaches at least
# In a window the deviations are of -1..1, not of a z-score: configs/msd_lung.yaml.
WINDOWED = {"brightness": 0.05, "contrast": 0.1, "noise": 0.05}

# -- flips ----------------------------------------------------------------------------------------
# A class that always lies on one side of another along an axis is known by it: not to be mirrored.
APART = 2.0  # deviations of their distance that the mean is from 0: of one sign in 97 of 100
SMALL_VOLUME = 500_000  # voxels of the largest volume up to which every flip is quick: judgement

# -- deformation ----------------------------------------------------------------------------------
ELASTIC = 0.3  # probability: hippocampus.yaml, sts_pet.yaml
ELASTIC_VOXELS, ELASTIC_GRID_VOXELS = 3.0, 12.0  # its size and grid, by the shortest voxel edge
ELASTIC_GRID_SLICES = 2.0  # thick slices that its grid spans at least: they shift together

# -- schedule -------------------------------------------------------------------------------------
VALIDATED = 0.1  # share of the budget that validations may take: judgement
VALIDATIONS = 10  # in a budget: training's default
LEAST_VALIDATED = 4  # cases, below which there are fewer validations rather than fewer cases
NEVER = 1_000_000  # steps between validations where only the last one is wanted
LEAST_STEPS = 20  # of a budget that is worth its start-up
WORKERS = 4  # that prepare patches while a GPU computes: configs/msd_lung.yaml
AVERAGED = 8.0  # the average of the weights reaches back over this part of the steps
AVERAGES = (0.98, 0.99, 0.995, 0.998, 0.999)  # decays; hippocampus.yaml has .998

# -- prediction and evaluation --------------------------------------------------------------------
FOLDS = 5
# After 150 CPU seconds mean Dice was .884 in windows and .880 in one pass on hippocampus, after 160
# .759 and .749 on four folds of sts_sarcoma, likely since norms see other statistics.
WINDOWS = "as trained: in one pass over a volume norms see other statistics, and masks get worse"
SINGLE = 0.98  # share of cases in which a class is one component, for more to be false: judgement
SINGLE_CASES = 10  # that it takes to see so
MEMORY_SHARE = 0.5  # of what is free now, where no --memory is given
