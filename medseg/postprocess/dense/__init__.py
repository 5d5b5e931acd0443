"""The filters and updates of the dense CRF; `medseg.postprocess.crf` is the door."""
