"""What mapping, its rejection, discrepancies and renamed genes may not depend on."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cellray.score.mapping import auroc, auroc_draws, map_by_neighbours, rejection
from cellray.score.mmd import median_bandwidths, mmd
from cellray.tasks.orthologs import NO_ORTHOLOG, ortholog_names

SEEDS = st.integers(0, 2**32)


@settings(max_examples=25)
@given(SEEDS, st.integers(2, 40), st.integers(1, 30), st.integers(1, 7))
def test_rotation_shift_and_scale_change_no_mapping(seed, n, m, k):
    rng = np.random.default_rng(seed)
    z, query, labels = rng.normal(size=(n, 4)), rng.normal(size=(m, 4)), rng.integers(0, 3, n)
    rotation, shift = np.linalg.qr(rng.normal(size=(4, 4)))[0], rng.normal(size=4)
    mapped = map_by_neighbours(z, labels, query, k=k)
    again = map_by_neighbours(7 * z @ rotation + shift, labels, 7 * query @ rotation + shift, k=k)
    np.testing.assert_array_equal(mapped.predicted, again.predicted)
    np.testing.assert_allclose(mapped.distance, again.distance, rtol=1e-6)
    np.testing.assert_array_equal(mapped.vote, again.vote)
    assert ((mapped.vote > 0) & (mapped.vote <= 1)).all()


@given(SEEDS, st.integers(1, 30))
def test_a_higher_threshold_rejects_no_more(seed, n):
    rng = np.random.default_rng(seed)
    distance, right, known = rng.random(n), rng.random(n) < 0.5, rng.random(n) < 0.5
    levels = [rejection(distance, right, known, at) for at in (0.2, 0.5, 1.0)]
    for name in {"rejected_known", "rejected_unknown"} & levels[0].keys():
        shares = [level[name] for level in levels]
        assert shares == sorted(shares, reverse=True)
        assert shares[-1] == 0
    assert levels[-1]["kept_accuracy"] == pytest.approx(right.mean())


@settings(max_examples=25)
@given(SEEDS, st.integers(4, 40))
def test_auroc_depends_on_order_alone(seed, n):
    rng = np.random.default_rng(seed)
    positive = rng.permutation(np.arange(n) % 2 == 0)
    score = rng.integers(0, 6, n) / 2
    units = np.arange(n)
    assert auroc(positive, np.exp(score)) == pytest.approx(auroc(positive, score))
    assert auroc(~positive, -score) == pytest.approx(auroc(positive, score))
    draws, again = (
        auroc_draws(positive, of, units, draws=10, seed=1) for of in (score, np.exp(score))
    )
    np.testing.assert_allclose(draws, again)
    assert ((draws >= 0) & (draws <= 1)).all()


@settings(max_examples=25)
@given(SEEDS, st.integers(2, 12), st.integers(2, 12))
def test_a_discrepancy_is_symmetric_and_knows_no_order(seed, n, m):
    rng = np.random.default_rng(seed)
    x, y = torch.from_numpy(rng.normal(size=(n, 3))), torch.from_numpy(rng.normal(size=(m, 3)))
    bandwidths = median_bandwidths(x, y)
    value = mmd(x, y, bandwidths).item()
    order = rng.permutation(n)
    assert mmd(y, x, bandwidths).item() == pytest.approx(value, abs=1e-12)
    assert mmd(x[order], y, bandwidths).item() == pytest.approx(value, abs=1e-12)
    shifted = mmd(3 * x + 1, 3 * y + 1, 3 * bandwidths).item()
    assert shifted == pytest.approx(value, abs=1e-9)
    assert -2 <= value <= 2


@settings(max_examples=25)
@given(SEEDS, st.integers(1, 20), st.integers(0, 6))
def test_one_to_one_pairs_name_genes_and_nothing_else_does(tmp_path_factory, seed, n, extra):
    rng = np.random.default_rng(seed)
    ours = [f"ours{number}" for number in range(n + extra)]
    theirs = [f"theirs{number}" for number in range(n + extra)]
    right = dict(zip(ours[:n], rng.permutation(theirs)[:n].tolist(), strict=True))
    path = tmp_path_factory.mktemp("orthologs") / "t.tsv"
    rows = [f"{b}\t{a}" for a, b in rng.permutation(list(right.items())).tolist()]
    path.write_text("\n".join(["theirs\tours", *rows]))
    order = rng.permutation(ours).tolist()
    names, _ = ortholog_names(str(path), order, theirs)
    assert len(set(names)) == len(names)
    for gene, name in zip(order, names.tolist(), strict=True):
        assert name == right.get(gene, f"{gene}{NO_ORTHOLOG}")
