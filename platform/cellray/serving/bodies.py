"""What a request holds, and what an answer looks like: JSON, ``.h5ad``, Arrow."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import h5py
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from scipy.sparse import csr_matrix
from starlette.requests import ClientDisconnect

from cellray.atlas.h5ad import open_h5ad
from cellray.atlas.hdf5 import h5_file
from cellray.core.errors import CellrayError

JSON, H5AD = "application/json", "application/x-hdf5"
ARROW = "application/vnd.apache.arrow.stream"

MAX_CELLS = 20_000
"""Cells of a request, at most: more are what ``cellray embed`` is for."""
UNPACKED = 1 << 30
"""Bytes that an .h5ad may unpack to: a small body may hold a great many zeros."""
ELEMENTS = 1 << 24
LINGERING, LINGERING_SECONDS = 16 << 20, 10.0
"""How much of a refused request's body is heard out, and for how long."""
FILE = "counts.h5ad"


class RequestError(CellrayError):
    """A request that cannot be answered.

    Parameters
    ----------
    status
        The HTTP status.
    what, mend
        As of `CellrayError`.
    """

    def __init__(self, status: int, what: str, mend: str) -> None:
        super().__init__(what, mend)
        self.status = status


@dataclass(frozen=True, eq=False)
class Cells:
    """Counts that came with a request.

    Attributes
    ----------
    counts
        Shape (N, A).
    genes
        Names of the columns, length A.
    names
        Names of the cells, length N.
    """

    counts: "csr_matrix[Any]"
    genes: NDArray[np.str_]
    names: Sequence[str]


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid")

    genes: Annotated[list[str], Field(min_length=1)]
    counts: list[list[float] | dict[str, float]]
    cells: list[str] | None = None


async def taken(stream: AsyncIterator[bytes], declared: str | None, limit: int) -> bytes:
    """Take a body, and no more of it than is allowed.

    Parameters
    ----------
    stream
        Its parts as they come.
    declared
        The header ``Content-Length``, if there is one.
    limit
        Bytes, at most.

    Raises
    ------
    RequestError
        It is larger: 413.
    """
    body = bytearray()
    large = bool(declared and declared.isdigit() and int(declared) > limit)
    if not large:
        async for part in stream:
            body += part
            if large := len(body) > limit:
                break
    if large:
        body.clear()  # the error's traceback would keep it
        raise RequestError(
            413, f"the body is larger than {limit >> 20} MiB", "send the cells in several requests"
        )
    return bytes(body)


async def hear_out(stream: AsyncIterator[bytes]) -> None:
    """Throw away what is left of the body of a request that is refused, up to a limit.

    A client that finds the connection closed while it sends does not see the answer.

    Parameters
    ----------
    stream
        The body's parts as they come; `LINGERING` bytes of it are taken, in `LINGERING_SECONDS`.
    """
    seen = 0
    with suppress(TimeoutError, ClientDisconnect):
        async with asyncio.timeout(LINGERING_SECONDS):
            async for part in stream:
                seen += len(part)
                if seen >= LINGERING:
                    break


def parse(body: bytes, kind: str, *, layer: str | None = None) -> Cells:
    """Read the counts of a request.

    Parameters
    ----------
    body
        JSON (``genes``, ``counts``, and ``cells`` if they have names), or an ``.h5ad``.
    kind
        The header ``Content-Type``.
    layer
        Of an ``.h5ad``: ``raw`` or a layer's name; None is ``X``.

    Raises
    ------
    RequestError
        400 for a body that cannot be read, 413 for too many cells, 415 for another kind, 422 for
        values that are no counts.
    """
    kind = kind.partition(";")[0].strip().lower()
    if kind == JSON:
        cells = _from_json(body)
    elif kind in {H5AD, "application/octet-stream"}:
        cells = _from_h5ad(body, layer)
    else:
        raise RequestError(
            415, f"a body of type '{kind}' cannot be read", f"send {JSON}, or {H5AD} for an .h5ad"
        )
    if not cells.counts.shape[0]:
        raise RequestError(400, "the request holds no cells", "send one cell at least")
    return cells


def _from_json(body: bytes) -> Cells:
    try:
        document = _Document.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        raise RequestError(
            400,
            f"{where}: {first['msg']}",
            'send {"genes": [names], "counts": [a list of numbers, or {gene: count}, a cell]}',
        ) from error
    rows = document.counts
    _require_few(len(rows))
    names = document.cells or [str(number) for number in range(len(rows))]
    if len(names) != len(rows):
        raise RequestError(
            400, f"{len(names)} names for {len(rows)} cells", "give each cell a name, or none"
        )
    places = {gene: place for place, gene in enumerate(document.genes)}
    indices, data, indptr = [], [], [0]
    for number, row in enumerate(rows):
        if isinstance(row, dict):
            unknown = next((gene for gene in row if gene not in places), None)
            if unknown is not None:
                raise RequestError(
                    400,
                    f"counts.{number}: gene '{unknown}' is not among genes",
                    "name all genes that were measured in genes",
                )
            indices.append(np.fromiter((places[gene] for gene in row), np.int64, len(row)))
            data.append(np.fromiter(row.values(), np.float64, len(row)))
        elif len(row) != len(document.genes):
            raise RequestError(
                400,
                f"counts.{number} has {len(row)} numbers for {len(document.genes)} genes",
                "give a number for each gene, or {gene: count}",
            )
        else:
            values = np.asarray(row, np.float64)
            indices.append(np.flatnonzero(values))
            data.append(values[indices[-1]])
        indptr.append(indptr[-1] + len(indices[-1]))
    joined = [np.concatenate([np.empty(0), *parts]) for parts in (data, indices)]
    shape = (len(rows), len(document.genes))
    counts = csr_matrix((joined[0], joined[1].astype(np.int64), np.array(indptr)), shape=shape)
    return Cells(counts, np.array(document.genes, np.str_), names)


def _from_h5ad(body: bytes, layer: str | None) -> Cells:
    """Read by cellray's own reader: plain arrays, and nothing that could bring code."""
    with tempfile.TemporaryDirectory(prefix="cellray-") as folder:
        path = Path(folder) / FILE
        path.write_bytes(body)
        status = 400
        try:
            with h5_file(path) as file:
                _require_own(file)
            source = open_h5ad(path, layer)
            _require_few(source.n_cells)
            names = [str(name) for name in source.names()]
            status = 422  # what follows reads the values
            counts: Any = 0
            for chunk in source.chunks(ELEMENTS):
                n = len(chunk.rows)
                where = (np.ones(n, np.uint8), (chunk.rows, np.arange(n)))
                counts += csr_matrix(where, shape=(source.n_cells, n)) @ chunk.counts
        except RequestError:
            raise
        except CellrayError as error:
            what, mend = (text.replace(f"{path}", FILE) for text in (error.what, error.mend))
            raise RequestError(status, what, mend) from error
    return Cells(csr_matrix(counts), source.genes.index.to_numpy(np.str_), names)


def _require_own(file: h5py.File) -> None:
    """Raise where a file is vast when unpacked, or would read other files of this machine."""
    total, others = 0, False

    def link(_: str, found: object) -> None:
        nonlocal others
        others = others or isinstance(found, h5py.ExternalLink)

    def node(_: str, found: object) -> None:
        nonlocal total, others
        if isinstance(found, h5py.Dataset):
            total += found.size * found.dtype.itemsize if found.size else 0
            others = others or found.is_virtual or bool(found.external)

    file.visititems_links(link)
    file.visititems(node)
    if others:
        raise RequestError(
            400, f"{FILE} refers to other files", "send a file that is whole by itself"
        )
    if total > UNPACKED:
        raise RequestError(
            413,
            f"{FILE} unpacks to {total >> 20:,} MiB, more than {UNPACKED >> 20:,}",
            "leave out what is not needed, or send the cells in several requests",
        )


def _require_few(n_cells: int) -> None:
    if n_cells > MAX_CELLS:
        raise RequestError(
            413,
            f"{n_cells:,} cells are more than {MAX_CELLS:,}",
            "send them in several requests, or embed an atlas with 'cellray embed'",
        )


def to_arrow(z_ND: NDArray[np.float32], names: Sequence[str], facts: dict[str, str]) -> bytes:
    """Write embeddings as an Arrow stream: ``cell`` and ``embedding``, `facts` in its schema."""
    flat = pa.array(np.ascontiguousarray(z_ND).reshape(-1))
    table = pa.table(
        {
            "cell": pa.array(list(names), pa.string()),
            "embedding": pa.FixedSizeListArray.from_arrays(flat, z_ND.shape[1]),
        }
    ).replace_schema_metadata(facts)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    found: bytes = sink.getvalue().to_pybytes()
    return found
