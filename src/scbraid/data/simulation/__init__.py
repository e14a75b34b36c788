"""The simulator: a multi-omics data set with known cells, links and lineages.

`config` holds the settings and their presets, `genome` places genes and peaks, `truth` plants
types, programs and links, `cells` draws cells, `counts` draws matrices, `write` streams them into
HDF5. Users import from `scbraid.data.simulate`.
"""
