"""The atlas: one AnnData-Zarr store of shuffled counts, written, read, split and planned."""
