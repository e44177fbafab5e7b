"""What any sound implementation shows on real cells, over two seeds."""

from functools import cache
from statistics import mean

import anndata
import methods
import numpy as np
import pytest
import torch

from cellray.atlas.write import ingest
from cellray.learn.embed import gene_columns
from cellray.learn.learner import Learner

SEEDS = methods.SEEDS[:2]  # docs/benchmarks/methods.md has three

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Small products on threads that other processes hold up are a hundred times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def bladder(shared_data):
    return anndata.read_h5ad(shared_data / "mouse_bladder_2100.h5ad")


@pytest.fixture(scope="module")
def trained(shared_data, tmp_path_factory):
    """Give a pre-trained row of the table; each is trained once."""
    folder = tmp_path_factory.mktemp("gates")
    atlas = ingest([shared_data / "mouse_bladder_2100.h5ad"], folder / "atlas")

    @cache
    def train(name, seed):
        if name == "transformer":
            return methods.tiny_transformer(seed, atlas)
        return methods.train(name, seed, atlas)

    return train


@pytest.fixture(scope="module")
def knn_f1(bladder):
    labels = bladder.obs[methods.LABEL].astype(str).to_numpy()

    def score(learner):
        return methods.annotated(methods.embedded(learner, bladder), labels)["knn"]

    return score


def untrained(learner):
    return Learner.of(learner.recipe, learner.genes)


def assert_better(better, worse):
    """Compare the means over the seeds."""
    assert mean(better) > mean(worse), (better, worse)


def test_masked_pretraining_beats_the_untrained_encoder(trained, knn_f1):
    models = [trained("masked, 50 %", seed) for seed in SEEDS]
    assert_better(
        [knn_f1(model) for model in models], [knn_f1(untrained(model)) for model in models]
    )


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ("byol, masks", "byol, masks, frozen target"),
        ("byol, masks", "byol, negative binomial noise x 1, dropout noise"),
    ],
)
def test_what_is_meant_beats_the_defect(trained, knn_f1, better, worse):
    assert_better(*([knn_f1(trained(name, seed)) for seed in SEEDS] for name in (better, worse)))


def test_a_linear_output_predicts_what_a_sigmoid_cannot(trained, knn_f1, bladder):
    """Targets are up to 9: a sigmoid ends at 1. Embeddings of small data hardly differ."""
    models = [
        [trained(name, seed) for seed in SEEDS]
        for name in ("masked, 50 %", "masked with a sigmoid output")
    ]
    for linear, bounded in zip(*models, strict=True):
        assert hidden_error(linear, bladder) < 0.8 * hidden_error(bounded, bladder)
    linear, bounded = (mean(map(knn_f1, each)) for each in models)
    assert linear > bounded - 0.02


@torch.no_grad()
def hidden_error(model, bladder):
    counts = torch.from_numpy(np.asarray(bladder.X.todense(), np.float32))
    totals = counts.sum(1)
    mine = counts[:, gene_columns(bladder.var_names.to_numpy(str), np.array(model.genes))]
    return model.eval()(mine, totals, torch.arange(len(mine)), 0)["loss"].item()


@pytest.mark.parametrize("share", [0.02, 0.1])
def test_pretraining_helps_where_labels_are_few(trained, bladder, share):
    scores = {"pretrained": [], "scratch": []}
    for seed in SEEDS:
        model = trained("masked, 50 %", seed)
        scores["scratch"].append(methods.fine_tuned(untrained(model), bladder, share, seed))
        scores["pretrained"].append(methods.fine_tuned(model, bladder, share, seed))
    assert_better(scores["pretrained"], scores["scratch"])


def test_sampling_the_long_tail_at_test_helps(trained, knn_f1):
    scores = {"long_tail": [], "uniform": []}
    for seed in SEEDS:
        model = trained("transformer", seed)
        scores["long_tail"].append(knn_f1(model))
        usual, model.encoder.long_tail = model.encoder.long_tail, 0.0
        scores["uniform"].append(knn_f1(model))
        model.encoder.long_tail = usual
    assert_better(scores["long_tail"], scores["uniform"])
