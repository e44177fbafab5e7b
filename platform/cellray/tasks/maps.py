"""Maps of an embedding: UMAP in the plane, coloured by a column.

Shape suffixes: N cells, D embedding.
"""

import warnings
from collections.abc import Iterator, Mapping

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import hsv_to_rgb, to_hex
from numpy.typing import NDArray

from cellray.tasks.figures import canvas_of, short, svg_of
from cellray.tasks.task import Figure, sample_cells

UMAP_CELLS = 20_000

NAMED = 48
"""How many values a legend names at most."""

GOLDEN = 0.618034


def umap(z_ND: NDArray[np.float32], *, seed: int) -> NDArray[np.float32]:
    """Lay out an embedding in the plane with UMAP; the same seed gives the same layout.

    Parameters
    ----------
    z_ND
        Shape (N, D), N at least 3.
    seed
        UMAP's ``random_state``.

    Returns
    -------
    ndarray
        Shape (N, 2), float32.
    """
    with warnings.catch_warnings():
        # It announces on import that an optional part of it needs TensorFlow.
        warnings.filterwarnings("ignore", "Tensorflow not installed", ImportWarning)
        from umap.umap_ import UMAP
    neighbours = min(15, len(z_ND) - 1)
    start = "spectral" if len(z_ND) > 4 * neighbours else "random"  # a tiny graph has no spectrum
    layout = UMAP(n_neighbors=neighbours, init=start, random_state=seed, n_jobs=1)
    places: NDArray[np.float32] = layout.fit_transform(z_ND)
    return places


def column_maps(
    z_ND: NDArray[np.float32], columns: Mapping[str, tuple[str, NDArray[np.str_]]], *, seed: int
) -> Iterator[Figure]:
    """Lay cells out once, and draw them coloured by each of some columns.

    Parameters
    ----------
    z_ND
        Shape (N, D); of more than `UMAP_CELLS` a sample is drawn.
    columns
        By the figure's name: the column's, and its value of each cell, shape (N,).
    seed
        Of sample and layout.
    """
    cells = sample_cells(len(z_ND), UMAP_CELLS, seed, "umap")
    places = umap(z_ND[cells], seed=seed)
    for name, (column, values) in columns.items():
        found, sizes = np.unique(values, return_counts=True)
        order = found[np.argsort(-sizes, kind="stable")]
        yield map_figure(places, values[cells], order, name=name, column=column, total=len(z_ND))


def map_figure(
    places: NDArray[np.float32],
    values: NDArray[np.str_],
    order: NDArray[np.str_],
    *,
    name: str,
    column: str,
    total: int,
) -> Figure:
    """Draw cells in the plane, coloured by a column.

    Parameters
    ----------
    places
        Shape (N, 2).
    values
        The column's value of each cell, shape (N,).
    order
        All values, the most abundant first.
    name
        The figure's name.
    column
        The column's name.
    total
        Cells of which the N are a sample.
    """
    colours = _palette(len(order))
    size = float(np.clip(9_000 / len(places), 1.2, 14))
    code = {value: number for number, value in enumerate(order)}
    mixed = np.random.default_rng(0).permutation(len(places))  # so that no class hides the others
    named = order[:NAMED]
    columns = 1 if len(named) <= NAMED // 2 else 2
    legend = columns * (0.5 + 0.078 * max(len(short(value)) for value in named))  # inches
    with canvas_of(5.6 + legend, 5.4) as canvas:
        axes = canvas.subplots()
        axes.scatter(
            places[mixed, 0],
            places[mixed, 1],
            c=[colours[code[value]] for value in values[mixed]],
            s=size,
            lw=0,
            alpha=0.8,
            rasterized=True,
        )
        axes.set(xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2")
        marks = [
            axes.plot([], [], "o", ms=6, color=colour, label=short(value))[0]
            for colour, value in zip(colours, named, strict=False)
        ]
        axes.legend(
            handles=marks,
            loc="center left",
            bbox_to_anchor=(1.0, 0.5),
            ncols=columns,
            title=column,
            handletextpad=0.2,
        )
        svg = svg_of(canvas, name)
    shown = f"{len(places):,} cells"
    if len(places) < total:
        shown += f", sampled from {total:,}"
    if len(order) > NAMED:
        shown += f"; the {NAMED} most abundant of {len(order)} values are named"
    return Figure(
        name=name,
        title=f"The embedding, coloured by {column}",
        caption=(
            f"UMAP of the model's embedding, {shown}. Distances between groups and their sizes "
            "mean little in a UMAP; the scores above are computed on the embedding itself."
        ),
        alt=f"Scatter plot of cells in two dimensions, coloured by {column}.",
        svg=svg,
    )


def _palette(count: int) -> list[str]:
    """Give distinct colours: strong ones first, then lighter ones, then a wheel."""
    if count <= 20:
        twenty = [to_hex(colour) for colour in colormaps["tab20"].colors]  # type: ignore[attr-defined]
        return (twenty[::2] + twenty[1::2])[:count]
    hues = np.arange(count) * GOLDEN % 1  # neighbours in the order are far apart on the wheel
    return [to_hex(tuple(hsv_to_rgb((hue, 0.75, 0.8)))) for hue in hues]
