"""medseg: 3D medical lesion segmentation."""

__version__ = "0.1.0"
