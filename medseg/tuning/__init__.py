"""Postprocessing that is chosen by measurement: tried on cases left out, kept only if it helps."""
