"""The atlas: made of many sources, read by any cells, and the order in which a run reads it.

Sources, from a file to checked chunks in the atlas's columns: `sources` opens them (`h5ad`,
`h5mu`, `tenx`, over `hdf5` and `encoded`); `counts` says what each gives; `canonical` and
`kernels` check and narrow values; `vocabulary` and `naming` join genes, `joining` what rides
along, `columns` obs and var.

Writing: `write` has ingest and append, `contents` a part of an atlas; `passes` and `shuffle`
shuffle out of core, `stream` and `shards` write shards; `staging`, `journal` and `mishaps` make it
all or nothing, and let it go on after a crash. `simulate` and `negbin` make counts of known
structure.

Reading: `store` has `Atlas`, over `part`, `read` and `shards`; `manifest` is what an atlas says of
itself, `storage` the bytes of folders and buckets, `describe` the facts for people, `genes` the
choice of variable ones.

Order: `plan` and `selection` say which cells every step trains on, `weights` and `splits` which
cells may come and how often; `choose` makes them of a recipe, `forecast` says what they cost.
"""
