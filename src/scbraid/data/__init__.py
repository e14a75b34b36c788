"""Data sets: what they are, how they are fetched, read, simulated and checked.

Import from the modules; each loads only what it needs.

- `scbraid.data.registry`: the entries of config/datasets.yaml (`load_datasets`)
- `scbraid.data.download`: verified, resumable transfers (`download`)
- `scbraid.data.readers`: 10x HDF5, Matrix Market, text tables, h5ad, h5mu
- `scbraid.data.assemble`: one dataset.h5mu from raw files (`assemble`)
- `scbraid.data.check`: what is wrong with a file (`check_files`)
- `scbraid.data.simulate`: data with known truth (`simulate`)
- `scbraid.data.layers`: the arrays of a file, read without anndata (`Layers`)
"""
