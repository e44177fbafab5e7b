"""What scores of clustering and of integration may not depend on, whatever the cells."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellray.score.clustering import agreement, silhouette
from cellray.score.integration import (
    bras,
    clisi,
    graph_connectivity,
    ilisi,
    isolated_labels,
    pcr,
)
from cellray.score.neighbours import lisi, nearest


@st.composite
def cells(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n, n_labels, n_batches = draw(st.integers(20, 60)), *draw(st.tuples(*[st.integers(2, 4)] * 2))
    labels = np.append(np.arange(n_labels).repeat(4), rng.integers(0, n_labels, n))
    batches = np.append(np.tile([0, 1], 2 * n_labels), rng.integers(0, n_batches, n))
    z = rng.normal(size=(len(labels), 5)) + draw(st.floats(0, 3)) * labels[:, None]
    return z, labels, batches, rng


def scored(z, labels, batches):
    indices, distances = nearest(z, 12)
    return {
        "silhouette": silhouette(z, labels, seed=0),
        "isolated_labels": isolated_labels(z, labels, batches, seed=0),
        "bras": bras(z, labels, batches, seed=0),
        "graph_connectivity": graph_connectivity(indices, labels),
        "clisi": clisi(indices, distances, labels),
        "ilisi": ilisi(indices, distances, batches),
        "pcr": pcr(z, batches),
    }


@settings(max_examples=25)
@given(cells())
def test_order_of_cells_names_of_classes_and_rotations_change_nothing(drawn):
    z, labels, batches, rng = drawn
    order, rotation = rng.permutation(len(z)), np.linalg.qr(rng.normal(size=(5, 5)))[0]
    renamed = np.array(["z", "k", "a", "m"])
    found = scored((z @ rotation)[order], renamed[labels[order]], renamed[batches[order]])
    expected = scored(z, labels, batches)
    assert found == pytest.approx(expected, abs=1e-4)  # LISI's bisection ends at 1e-5
    assert all(-1e-9 <= value <= 1 + 1e-9 for value in expected.values())


@settings(max_examples=25)
@given(cells())
def test_lisi_lies_between_one_and_the_number_of_classes(drawn):
    z, labels, _, _ = drawn
    found = lisi(*nearest(z, 12), labels)
    assert found.min() >= 1 - 1e-9
    assert found.max() <= len(np.unique(labels)) + 1e-9


@settings(max_examples=25)
@given(cells())
def test_agreement_is_symmetric_and_perfect_with_itself(drawn):
    _, labels, batches, _ = drawn
    assert agreement(labels, batches) == pytest.approx(agreement(batches, labels))
    assert agreement(labels, labels.astype(str)) == pytest.approx({"ari": 1, "nmi": 1})
