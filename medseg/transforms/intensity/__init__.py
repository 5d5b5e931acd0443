"""Intensity normalisation of one case: components of `preprocess.normalise`.

Each takes and returns a dict with "image" (C, I, J, K) float32 and, where the data has a region of
interest, "mask" (I, J, K) bool. Statistics are of each channel by itself.
"""

from medseg.transforms.intensity.landmarks import HistogramLandmarks
from medseg.transforms.intensity.percentiles import ClipPercentiles, Percentiles
from medseg.transforms.intensity.window import Window
from medseg.transforms.intensity.zscore import ZScore

__all__ = ["ClipPercentiles", "HistogramLandmarks", "Percentiles", "Window", "ZScore"]
