"""What an atlas holds, for people: the facts behind ``cellray inspect``."""

from typing import Any

import numpy as np
import obstore
import pandas as pd

from cellray.atlas.shards import Layout
from cellray.atlas.storage import intact, object_store, storage_errors
from cellray.atlas.store import Atlas

TOP_VALUES = 8


def describe(atlas: Atlas) -> dict[str, Any]:
    """List an atlas's size, layout, obs columns and sources.

    Parameters
    ----------
    atlas
        An open atlas; its obs is read, its counts are not.

    Returns
    -------
    dict
        ``url``, ``digest``, ``cells``, ``genes``, ``nonzeros``, ``nonzeros_per_cell``,
        ``max_count``, ``bytes``, ``seed``; ``parts`` with the cells of each, ``matrices`` that ride
        along, ``splits``; ``arrays`` by path with ``declared`` and ``stored``
        dtype, ``chunk`` and ``shard`` in elements; ``obs`` by column (`describe_column`);
        ``sources`` as the manifest has them.
    """
    manifest = atlas.manifest
    with storage_errors(atlas.url), intact(atlas.url):
        obs = atlas.obs()
        store = object_store(atlas.url)
        n_bytes = sum(item["size"] for page in obstore.list(store) for item in page)
        arrays = {
            f"{part.facts.path}/X/{name}".lstrip("/"): _layout(part.reader(f"X/{name}").layout)
            for part in atlas.parts
            for name in ("data", "indices", "indptr")
        }
    return {
        "url": atlas.url,
        "digest": manifest.digest,
        "cells": manifest.n_cells,
        "genes": manifest.n_genes,
        "nonzeros": manifest.nnz,
        "nonzeros_per_cell": manifest.nnz / manifest.n_cells,
        "max_count": manifest.max_count,
        "bytes": n_bytes,
        "seed": manifest.seed,
        "parts": list(atlas.part_cells),
        "matrices": manifest.matrices,
        "splits": manifest.splits,
        "arrays": arrays,
        "obs": {name: describe_column(obs[name]) for name in obs},
        "sources": manifest.sources,
    }


def describe_column(column: "pd.Series[Any]") -> dict[str, Any]:
    """List a column's most frequent values, or its range where it holds numbers.

    Returns
    -------
    dict
        ``dtype`` and ``missing``; for numbers ``min``, ``mean`` and ``max``, else ``distinct``
        and ``top``, a mapping from the most frequent values to their numbers of cells.
    """
    facts: dict[str, Any] = {"dtype": str(column.dtype), "missing": int(column.isna().sum())}
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        values = column.to_numpy(dtype=np.float64, na_value=np.nan)
        values = values[np.isfinite(values)]
        if len(values):
            facts |= {
                "min": float(values.min()),
                "mean": float(values.mean()),
                "max": float(values.max()),
            }
        return facts
    counts = column.value_counts()
    counts = counts[counts > 0]
    top = {str(value): int(n) for value, n in counts.head(TOP_VALUES).items()}
    return facts | {"distinct": len(counts), "top": top}


def _layout(layout: Layout) -> dict[str, Any]:
    return {
        "declared": layout.declared.name,
        "stored": layout.dtype.name,
        "chunk": layout.chunk,
        "shard": layout.shard,
    }
