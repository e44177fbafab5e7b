"""Mapping a query to a reference: planted types are found, unknown ones told apart."""

from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix, vstack
from sklearn.metrics import f1_score, roc_auc_score
from sklearn.model_selection import StratifiedShuffleSplit
from sklearn.neighbors import KNeighborsClassifier

from cellray.atlas.scenarios import MISSING, two_species
from cellray.atlas.simulate import Simulation
from cellray.core.errors import CellrayError
from cellray.score.embedding import pca_embedding
from cellray.score.mapping import map_by_neighbours
from cellray.tasks.mapping import mapping
from cellray.tasks.orthologs import ortholog_names
from cellray.tasks.task import Embeddings, Spec

SPEC = Spec(label="cell_type", splits=2)
SIMULATION = Simulation(
    n_cells=400, n_genes=200, n_types=4, n_programmes=6, library=800, separation=1.5, seed=4
)


def pair_of(reference, query, *, genes=None):
    """Give a query with its reference; the model is a PCA of all cells, the other one noise."""
    genes = np.asarray(query.var_names if genes is None else genes, str)
    _, theirs, ours = np.intersect1d(reference.var_names, genes, return_indices=True)
    counts = [csr_matrix(data.X) for data in (reference, query)]
    z = pca_embedding(vstack([counts[0][:, theirs], counts[1][:, ours]], format="csr"), dim=10)
    rng = np.random.default_rng(0)
    noise = rng.normal(size=z.shape).astype(np.float32)
    sides = []
    for number, (data, names) in enumerate(((reference, reference.var_names), (query, genes))):
        rows = slice(0, len(reference)) if number == 0 else slice(len(reference), None)
        obs = data.obs.reset_index(drop=True)
        obs["donor"] = rng.choice(["anna", "ben", "cleo"], len(obs))
        sides.append(
            Embeddings(
                frozen={"model": z[rows], "untrained": noise[rows]},
                counts=counts[number],
                obs=obs,
                genes=np.asarray(names, str),
            )
        )
    return replace(sides[1], reference=sides[0])


@pytest.fixture(scope="module")
def species(tmp_path_factory):
    """Two simulated species, the query named by its orthologs."""
    reference, query, table = two_species(SIMULATION, orthologs=0.9, spread=0.3)
    path = tmp_path_factory.mktemp("orthologs") / "orthologs.csv"
    table.to_csv(path, index=False)
    genes, _ = ortholog_names(str(path), list(query.var_names), list(reference.var_names))
    return pair_of(reference, query, genes=genes)


@pytest.fixture(scope="module")
def known(species):
    """The same without the cells whose type the reference lacks."""
    return species.take(np.flatnonzero(species.obs["cell_type"] != MISSING))


@pytest.fixture(scope="module")
def report(species):
    return mapping(species, SPEC)


@pytest.fixture(scope="module")
def of_known(known):
    return mapping(known, SPEC)


def with_obs(cells, **columns):
    return replace(cells, obs=cells.obs.assign(**columns))


def with_reference(cells, **changes):
    return replace(cells, reference=replace(cells.reference, **changes))


def test_planted_types_are_found_in_another_species(report):
    found = report.metrics
    for method, reader in (("model", "knn"), ("pca", "knn"), ("nearest_centroid", "centroid")):
        assert found[f"{method}/{reader}/macro_f1"] > 0.9
    assert found["untrained/knn/macro_f1"] < 0.5


def test_the_type_that_the_reference_lacks_is_told_apart(report):
    found = report.metrics
    assert found["model/distance/unknown_auroc"] > 0.9
    assert 0.35 < found["untrained/distance/unknown_auroc"] < 0.65
    assert found["model/distance/rejected_unknown"] > 0.95
    assert found["model/distance/rejected_known"] < 0.6  # another species lies a little apart
    assert "model/held_out_type/unknown_auroc" not in found
    assert any(f"that the reference lacks, such as '{MISSING}'" in note for note in report.notes)


def test_a_twentieth_is_rejected_where_the_query_lies_as_the_reference_does():
    many = replace(SIMULATION, n_cells=1_000, seed=8)
    reference, query, table = two_species(many, orthologs=1, spread=0)
    genes = table.set_index("query")["reference"].loc[query.var_names].to_numpy(str)
    found = mapping(pair_of(reference, query, genes=genes), Spec(label="cell_type")).metrics
    # The threshold hangs on the last 5 % of some 150 cells: a standard error of 0.018.
    for method in ("model", "pca", "untrained", "nearest_centroid"):
        assert found[f"{method}/distance/rejected_known"] == pytest.approx(0.05, abs=0.045)
    assert found["model/distance/rejected_unknown"] > 0.95
    assert found["untrained/distance/rejected_unknown"] < 0.1


def test_scores_are_those_of_scikit_learn_on_the_same_cells(species, report):
    reference = species.reference
    labels, true = (data.obs["cell_type"].to_numpy(str) for data in (reference, species))
    known = true != MISSING
    splits = StratifiedShuffleSplit(2, test_size=0.2, random_state=0).split(labels, labels)
    z, asked = reference.frozen["model"], species.frozen["model"]
    expected = {"macro_f1": [], "unknown_auroc": [], "kept_accuracy": [], "rejected_known": []}
    for fit, held in splits:
        fit, held = np.sort(fit), np.sort(held)
        model = KNeighborsClassifier(5).fit(z[fit], labels[fit])
        told = model.predict(asked)
        distance = model.kneighbors(asked)[0].mean(axis=1)
        threshold = np.quantile(model.kneighbors(z[held])[0].mean(axis=1), 0.95)
        kept = distance <= threshold
        expected["macro_f1"].append(f1_score(true[known], told[known], average="macro"))
        expected["unknown_auroc"].append(roc_auc_score(~known, distance))
        expected["kept_accuracy"].append(np.mean(told[kept] == true[kept]))
        expected["rejected_known"].append(np.mean(~kept[known]))
    for metric, values in expected.items():
        readout = "knn" if metric == "macro_f1" else "distance"
        chosen = report.scores[["method", "readout", "metric"]] == ("model", readout, metric)
        ours = report.scores.loc[chosen.all(axis=1), "value"]
        np.testing.assert_allclose(ours, values, atol=1e-6)


def test_a_type_is_held_out_where_none_is_unknown(known, of_known):
    rows = of_known.scores.query("readout == 'held_out_type' and method == 'model'")
    assert rows["split"].tolist() == [0, 1, 2]
    labels, true = (d.obs["cell_type"].to_numpy(str) for d in (known.reference, known))
    splits = StratifiedShuffleSplit(2, test_size=0.2, random_state=0).split(labels, labels)
    fit = np.sort(next(splits)[0])
    largest = pd.Series(true).value_counts().index[0]
    left = fit[labels[fit] != largest]
    mapped = map_by_neighbours(
        known.reference.frozen["model"][left], labels[left], known.frozen["model"]
    )
    expected = roc_auc_score(true == largest, mapped.distance)
    assert rows["value"].iloc[0] == pytest.approx(expected, abs=1e-9)
    assert of_known.metrics["model/held_out_type/unknown_auroc"] > 0.8
    assert abs(of_known.metrics["untrained/held_out_type/unknown_auroc"] - 0.5) < 0.1
    assert "model/distance/unknown_auroc" not in of_known.metrics
    assert any("taken out of it one at a time" in note for note in of_known.notes)


def test_permuted_truth_scores_at_chance(species):
    true = species.obs["cell_type"].to_numpy(str)
    permuted = np.random.default_rng(3).permutation(true)
    found = mapping(with_obs(species, cell_type=permuted), SPEC).metrics
    shares = np.unique(permuted[permuted != MISSING], return_counts=True)[1]
    for method, reader in (("model", "knn"), ("pca", "knn"), ("nearest_centroid", "centroid")):
        assert found[f"{method}/{reader}/micro_f1"] < shares.max() / shares.sum() + 0.08
        assert found[f"{method}/distance/unknown_auroc"] == pytest.approx(0.5, abs=0.1)


def test_the_same_input_gives_the_same_report(known, of_known):
    again = mapping(known, SPEC)
    pd.testing.assert_frame_equal(again.scores, of_known.scores)
    pd.testing.assert_frame_equal(again.intervals, of_known.intervals)
    assert again.figures == of_known.figures
    other = mapping(known, Spec(label="cell_type", splits=2, seed=1))
    assert not np.array_equal(other.scores["value"], of_known.scores["value"])


def test_intervals_hold_the_means_and_donors_widen_them(species, report):
    by_donor = mapping(species, Spec(label="cell_type", splits=2, split_by="donor"))
    for found in (report, by_donor):
        assert set(found.intervals["metric"]) == {"macro_f1", "micro_f1", "unknown_auroc"}
        metrics = found.metrics
        for key in [key for key in metrics if f"{key}_low" in metrics]:
            assert metrics[f"{key}_low"] <= metrics[key] <= metrics[f"{key}_high"]
    assert by_donor.metrics["pca/knn/micro_f1"] == report.metrics["pca/knn/micro_f1"]
    assert not by_donor.intervals.equals(report.intervals)


def test_one_donor_gives_no_interval(species):
    one = mapping(
        with_obs(species, donor="anna"), Spec(label="cell_type", splits=1, split_by="donor")
    )
    assert one.intervals.empty
    assert any("one donor only, so there are no intervals" in note for note in one.notes)


def test_the_table_of_types_says_what_became_of_them(species, report):
    types = report.tables["types"].set_index("class")
    sizes = species.obs["cell_type"].value_counts()
    assert types["cells"].to_dict() == sizes.to_dict()
    assert types["cells"].is_monotonic_decreasing
    assert types.loc[MISSING, "in_reference"] == "no"
    assert np.isnan(types.loc[MISSING, "f1"])
    others = types.drop(index=MISSING)
    assert (others["assigned_as"] == others.index).all()
    assert others["f1"].mean() == pytest.approx(report.metrics["model/knn/macro_f1"])
    share = (others["rejected"] * others["cells"]).sum() / others["cells"].sum()
    assert share == pytest.approx(report.metrics["model/distance/rejected_known"])
    confusion = report.tables["confusion"].set_index("true class")
    assert confusion.to_numpy().sum() == 2 * len(species.obs)
    assert confusion[MISSING].sum() == 0
    assert [figure.name for figure in report.figures] == ["scores", "confusion"]
    assert all(figure.alt for figure in report.figures)


def test_a_champion_is_compared_on_the_same_cells(known):
    both = replace(known, frozen=known.frozen | {"champion": known.frozen["model"]})
    both = with_reference(
        both, frozen=known.reference.frozen | {"champion": known.reference.frozen["model"]}
    )
    table = mapping(both, SPEC).tables["against_champion"]
    assert table["difference"].tolist() == [0, 0]
    assert table["p"].tolist() == [1, 1]


def test_genes_are_matched_by_name(known, of_known):
    order = np.random.default_rng(1).permutation(len(known.genes))
    shuffled = replace(known, genes=known.genes[order], counts=known.counts[:, order])
    found = mapping(shuffled, SPEC).metrics
    for key in ("pca/knn/macro_f1", "nearest_centroid/centroid/macro_f1"):
        assert found[key] == of_known.metrics[key]


def test_cells_without_labels_are_left_out_and_counted(species):
    labels = species.obs["cell_type"].to_numpy(object)
    labels[:3] = None
    of_reference = species.reference.obs["cell_type"].to_numpy(object)
    of_reference[:5] = None
    of_reference[5] = "lonely"
    data = with_obs(species, cell_type=labels)
    data = with_reference(data, obs=species.reference.obs.assign(cell_type=of_reference))
    notes = mapping(data, Spec(label="cell_type", splits=1)).notes
    assert "3 cells have no 'cell_type' and were left out." in notes
    assert "Reference: 5 cells have no 'cell_type' and were left out." in notes
    assert any(
        note.startswith("Reference: 1 values of 'cell_type' with a single") for note in notes
    )


def few_of_each(cells, types):
    few = cells.reference.take(np.arange(len(types)))
    return replace(cells, reference=replace(few, obs=few.obs.assign(cell_type=list(types))))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: replace(c, reference=None), "none is named"),
        (
            lambda c: with_obs(c, cell_type="x"),
            "no value of 'cell_type' in common: 'x' is in the one, 'type_.' in the other",
        ),
        (lambda c: with_obs(c, cell_type=None), "nothing is in the one"),
        (
            lambda c: replace(
                c, genes=np.append(c.reference.genes[0], np.char.add(c.genes[1:], "x"))
            ),
            "1 genes in common, of 200 of the one",
        ),
        (
            lambda c: with_reference(c, obs=c.reference.obs.assign(cell_type="x")),
            "one value only",
        ),
        (
            lambda c: few_of_each(with_obs(c, cell_type="a"), "aabbccdd"),
            "a fifth of 8 reference cells is less than one of each of 4 values",
        ),
        (
            lambda c: replace(c, frozen={name: z * np.nan for name, z in c.frozen.items()}),
            "NaN",
        ),
    ],
)
def test_what_cannot_be_mapped_is_refused(species, change, message):
    with pytest.raises(CellrayError, match=message):
        mapping(change(species), SPEC)


def test_a_query_of_one_type_has_no_type_to_hold_out(known):
    one = known.take(np.flatnonzero(known.obs["cell_type"] == "type_1"))
    found = mapping(one, Spec(label="cell_type", splits=1)).metrics
    assert found["model/knn/micro_f1"] > 0.9
    assert not any("held_out_type" in key for key in found)


def test_plates_of_other_genes_are_mapped_by_those_in_common(shared_data):
    plates = [anndata.read_h5ad(shared_data / f"mixology_sc_celseq2_5cl_p{n}.h5ad") for n in (1, 2)]
    for plate in plates:
        plate.obs["cell_type"] = plate.obs["cell_line"]
    found = mapping(pair_of(*plates), Spec(label="cell_type", splits=1)).metrics
    assert found["pca/knn/macro_f1"] > 0.9
    assert found["pca/distance/rejected_known"] < 0.3
    assert found["untrained/knn/macro_f1"] < 0.35
    assert found["pca/held_out_type/unknown_auroc"] > 0.65
