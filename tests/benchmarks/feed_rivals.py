"""The other loaders' side of the benchmark: one measurement a process, cellray not imported.

Each gets what suits it best: batches stay sparse where it can give sparse ones, labels are read
as codes and once, and worker processes are tried with and without.

usage: python feed_rivals.py NAME JSON
"""

import time
import warnings
from collections.abc import Iterator
from functools import cached_property
from itertools import count
from typing import Any

import anndata
import h5py
import numpy as np
from feed_measure import LABEL, Batch, answer, consume

warnings.simplefilter("ignore")


def epochs(loader: Any, size: int, fetch: int = 1) -> Iterator[tuple[Any, bool]]:
    """Give epoch after epoch of `size` batches, and with each whether it ends a fetch."""
    for _ in count():
        for number, batch in enumerate(loader, 1):
            yield batch, number % fetch == 0 or number == size


def backed(source: str) -> anndata.AnnData:
    return anndata.read_h5ad(source, backed="r")


def codes(cells: anndata.AnnData) -> np.ndarray:
    return np.asarray(cells.obs[LABEL].cat.codes)


def csr(x: Any) -> tuple[np.ndarray, np.ndarray]:
    return x.data, x.indices


def scdataset(
    *, source: str, batch: int, block: int, fetch: int, workers: int, seconds: float
) -> dict[str, Any]:
    """Give scDataset's batches: blocks of `block` cells, `fetch` batches read at once."""
    from scdataset import BlockShuffling, scDataset
    from torch.utils.data import DataLoader

    dataset = scDataset(
        backed(source),
        BlockShuffling(block_size=block),
        batch_size=batch,
        fetch_factor=fetch,
        drop_last=True,
        fetch_transform=_in_memory,
        batch_callback=_cut,
        seed=0,
    )
    loader = DataLoader(dataset, batch_size=None, num_workers=workers) if workers else dataset
    together = epochs(loader, len(dataset), fetch * max(1, workers))
    stream = ((labels, csr(x), fetched) for (x, labels), fetched in together)
    return consume(stream, seconds=seconds)


def _in_memory(cells: anndata.AnnData) -> tuple[Any, np.ndarray]:
    cells = cells.to_memory()
    return cells.X, codes(cells)


def _cut(fetched: tuple[Any, np.ndarray], rows: np.ndarray) -> tuple[Any, np.ndarray]:
    return fetched[0][rows], fetched[1][rows]


def annloader(*, source: str, batch: int, seconds: float) -> dict[str, Any]:
    """Give AnnLoader's batches, shuffled, from a backed file; it makes them dense itself.

    It has no way to join what several workers read from a file.
    """
    from anndata.experimental import AnnLoader

    loader = AnnLoader(backed(source), batch_size=batch, shuffle=True)

    def stream() -> Iterator[Batch]:
        for cells, fetched in epochs(loader, len(loader)):
            yield np.asarray(cells.obs[LABEL]), (cells.X.numpy().reshape(-1),), fetched

    return consume(stream(), seconds=seconds)


def dataloader(*, source: str, batch: int, workers: int, seconds: float) -> dict[str, Any]:
    """Give the batches of PyTorch's DataLoader over single rows of a backed file, shuffled."""
    import scipy.sparse
    from torch.utils.data import DataLoader, Dataset

    class Cells(Dataset):
        def __init__(self) -> None:
            self.codes = codes(backed(source))

        @cached_property
        def counts(self) -> Any:
            """The matrix, opened once by every worker; it keeps the row pointers in memory."""
            return backed(source).X

        def __len__(self) -> int:
            return len(self.codes)

        def __getitem__(self, row: int) -> tuple[Any, int]:
            return self.counts[row], self.codes[row]

    def collate(cells: list[tuple[Any, int]]) -> tuple[Any, np.ndarray]:
        rows, labels = zip(*cells, strict=True)
        return scipy.sparse.vstack(rows, format="csr"), np.array(labels)

    loader = DataLoader(
        Cells(), batch_size=batch, shuffle=True, num_workers=workers, collate_fn=collate
    )
    together = epochs(loader, len(loader), max(1, workers))
    return consume(((y, csr(x), fetched) for (x, y), fetched in together), seconds=seconds)


def annbatch_ingest(*, source: str, out: str) -> dict[str, Any]:
    """Shuffle a file into annbatch's own store, with its default chunks and shards."""
    annbatch = _annbatch()
    began = time.perf_counter()
    annbatch.DatasetCollection(out).add_adatas([source])
    seconds = time.perf_counter() - began
    with h5py.File(source) as file:
        cells = len(file["X/indptr"]) - 1
    return {"cells_per_s": cells / seconds}


def annbatch_read(
    *, store: str, batch: int, chunk: int, preload: int, seconds: float
) -> dict[str, Any]:
    """Give annbatch's batches: `preload` chunks of `chunk` cells read at once."""
    annbatch = _annbatch()
    loader = annbatch.Loader(
        batch_size=batch, chunk_size=chunk, preload_nchunks=preload, shuffle=True, drop_last=True
    )
    loader.use_collection(annbatch.DatasetCollection(store, mode="r"), load_adata=_element)
    together = epochs(loader, len(loader), chunk * preload // batch)
    stream = ((cells["obs"][LABEL], csr(cells["X"]), fetched) for cells, fetched in together)
    return consume(stream, seconds=seconds)


def _element(group: Any) -> anndata.AnnData:
    obs = anndata.io.read_elem(group["obs"])[[LABEL]]
    obs[LABEL] = obs[LABEL].cat.codes
    return anndata.AnnData(X=anndata.io.sparse_dataset(group["X"]), obs=obs)


def _annbatch() -> Any:
    import annbatch
    import zarr

    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
    return annbatch


if __name__ == "__main__":
    commands = (scdataset, annloader, dataloader, annbatch_ingest, annbatch_read)
    answer({command.__name__: command for command in commands})
