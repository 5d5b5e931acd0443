"""How a dataset's files may be arranged: one module per layout, each with `find` and `inputs`.

`find(data)` gives the cases of a training set, `inputs(folder, data)` those of a folder to predict.
Both take a config whose channels are resolved, and give the paths where files have to be, whether
they are there or not: a missing one is then reported with everything else that is wrong.
"""
