"""Figures: any size of input, readable names, no state left behind."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from cellray.tasks.figures import classes_figure, confusion_figure
from cellray.tasks.maps import map_figure, umap


@pytest.mark.parametrize("n_cells", [3, 16, 62])
def test_umap_lays_out_a_few_cells_and_a_constant_embedding(n_cells):
    z = np.random.default_rng(0).normal(size=(n_cells, 6)).astype(np.float32)
    for embedding in (z, np.zeros_like(z)):
        places = umap(embedding, seed=0)
        assert places.shape == (n_cells, 2)
        assert np.isfinite(places).all()


def test_umap_follows_its_seed_and_keeps_groups_apart():
    rng = np.random.default_rng(0)
    z = np.concatenate([rng.normal(size=(60, 5)), rng.normal(size=(60, 5)) + 30]).astype("f4")
    places = umap(z, seed=1)
    np.testing.assert_array_equal(places, umap(z, seed=1))
    assert not np.array_equal(places, umap(z, seed=2))
    centres = places[:60].mean(axis=0), places[60:].mean(axis=0)
    spread = max(places[:60].std(axis=0).max(), places[60:].std(axis=0).max())
    assert np.linalg.norm(centres[0] - centres[1]) > 3 * spread


def test_a_map_of_many_values_names_some_and_says_so():
    order = np.array([f"value {number:03}" for number in range(70)])
    places = np.random.default_rng(0).normal(size=(700, 2)).astype(np.float32)
    figure = map_figure(
        places, np.repeat(order, 10), order, name="map", column="label", total=9_000
    )
    assert "700 cells, sampled from 9,000" in figure.caption
    assert "the 48 most abundant of 70 values are named" in figure.caption


def test_odd_names_are_drawn_as_they_are():
    names = ["CD4$^+$ T", "<b>&amp;", "x" * 80, "ß µ"]
    classes = pd.DataFrame(
        {
            "class": names,
            "cells": [9, 8, 7, 6],
            "model": 0.5,
            "pca": 0.3,
            "pca_all": 0.4,
            "untrained": np.nan,
        }
    )
    assert classes_figure(classes).svg.count("<svg") == 1
    assert confusion_figure(pd.DataFrame(np.eye(4), index=names, columns=names)).svg


def test_a_class_that_was_never_tested_leaves_its_row_empty():
    counts = pd.DataFrame([[3, 1], [0, 0]], index=["a", "b"], columns=["a", "b"])
    assert "nan" not in confusion_figure(counts).svg


def test_drawing_leaves_matplotlib_as_it_was():
    before = dict(mpl.rcParams)
    confusion_figure(pd.DataFrame(np.eye(2), index=["a", "b"], columns=["a", "b"]))
    assert dict(mpl.rcParams) == before
