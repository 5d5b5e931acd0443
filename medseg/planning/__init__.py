"""From a data set to a config that says why: `medseg init`. Torch runs in a process of its own."""
