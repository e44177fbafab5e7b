"""A model served on a cluster, as its clients and Prometheus meet it."""

import http.client
import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import anndata
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families
from scipy.sparse import csr_matrix

from cellray.atlas.simulate import Simulation, simulate_anndata
from cellray.atlas.write import ingest
from cellray.cluster.processes import free_ports
from cellray.core.recipe import Recipe
from cellray.learn.embed import embed_matrix
from cellray.learn.learner import Learner
from cellray.serving.gauges import CELLS, DRIFT, REQUESTS, SECONDS
from cellray.track import models, runs
from cellray.track.promotion import promote

TOKEN = "a secret of sixty-four characters, which only clients are told."
PATIENCE = 240


@dataclass
class Service:
    """``cellray serve`` in a process of its own, and what it serves."""

    url: str
    learner: Learner
    cells: anndata.AnnData
    process: subprocess.Popen
    log: Path

    def ask(self, path, body=None, token=TOKEN, **headers):
        headers = {key.replace("_", "-"): value for key, value in headers.items()}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        try:
            with urlopen(Request(self.url + path, body, headers), timeout=120) as answer:
                return answer.status, answer.read(), answer.headers
        except HTTPError as error:
            return error.code, error.read(), error.headers

    def embed(self, **document):
        found = {"genes": list(self.cells.var_names)} | document
        return self.ask("/embed", json.dumps(found).encode(), Content_Type="application/json")


@pytest.fixture(scope="module")
def service(ray_cluster, tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve")
    cells = simulate_anndata(Simulation(n_cells=700, n_genes=80, seed=3))
    cells.write_h5ad(folder / "cells.h5ad")
    atlas = ingest([folder / "cells.h5ad"], folder / "atlas")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        learner = Learner.of(Recipe(), atlas.genes)
        run = runs.start_run(experiment="cellray", run_name="training", params={}, tags={})
        facts = {"atlas": atlas.url, "atlas_digest": atlas.digest}
        models.register(learner, run_id=run, name="served", facts=facts, metrics={})
        diverged = Learner.of(Recipe(), atlas.genes)
        with torch.no_grad():
            for parameter in diverged.parameters():
                parameter.fill_(float("nan"))
        models.register(diverged, run_id=run, name="served", facts=facts, metrics={})
        promote("served", source="1")
        (port,) = free_ports(1)
        words = ["serve", "models:/served@champion", "--follow-alias", "--port", str(port)]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "cellray", *words, "--max-mib", "1", "--json"],
                cwd=folder,
                env={
                    **os.environ,
                    **ray_cluster.env,
                    "RAY_ADDRESS": ray_cluster.address,
                    "CELLRAY_SERVE_TOKEN": TOKEN,
                },
                stdout=subprocess.PIPE,
                stderr=log,
            )
        found = Service("", learner.eval(), cells, process, folder / "log")
        try:
            told = b"".join(iter(process.stdout.readline, b"}\n")) + b"}"
            assert process.poll() is None, found.log.read_text()
            document = json.loads(told)
            assert document["model"] == "models:/served/1"
            found.url = document["url"]
            yield found
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 143, found.log.read_text()
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def published(cluster):
    """Give serving's samples in Prometheus's endpoint, by name, path and status."""
    with urlopen(cluster.metrics, timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    found = {}
    for sample in (sample for family in families for sample in family.samples):
        if sample.labels.get("model") == "models:/served/1":
            tags = tuple(sample.labels[key] for key in ("path", "status") if key in sample.labels)
            found[(sample.name.removeprefix("ray_"), *tags)] = sample.value
    return found


def until(look, wanted):
    end = time.monotonic() + PATIENCE
    while not wanted(found := look()) and time.monotonic() < end:
        time.sleep(0.5)
    return found


def test_embeddings_are_those_of_the_model(service):
    counts, genes = csr_matrix(service.cells.X), service.cells.var_names.to_numpy(str)
    expected = embed_matrix(service.learner, counts, genes)

    status, answer, headers = service.embed(counts=counts[:5].toarray().tolist())
    document = json.loads(answer)
    assert (status, document["model"], headers["X-Cellray-Model"]) == (
        *(200, "models:/served/1"),
        "models:/served/1",
    )
    assert document["genes_matched"] == 1
    np.testing.assert_allclose(document["embeddings"], expected[:5], atol=1e-5)

    sparse = [
        {
            str(genes[place]): float(value)
            for place, value in zip(row.indices, row.data, strict=True)
        }
        for row in counts[5:8]
    ]
    status, answer, _ = service.embed(counts=sparse, cells=["x", "y", "z"])
    assert json.loads(answer)["cells"] == ["x", "y", "z"]
    np.testing.assert_allclose(json.loads(answer)["embeddings"], expected[5:8], atol=1e-5)

    order = np.random.default_rng(0).permutation(len(genes))
    shuffled = anndata.AnnData(
        counts[:, order], service.cells.obs[[]], pd.DataFrame(index=genes[order])
    )
    path = service.log.with_name("shuffled.h5ad")
    shuffled.write_h5ad(path)
    arrow = "application/vnd.apache.arrow.stream"
    status, answer, headers = service.ask(
        "/embed", path.read_bytes(), Content_Type="application/x-hdf5", Accept=arrow
    )
    assert (status, headers["Content-Type"]) == (200, arrow)
    table = pa.ipc.open_stream(io.BytesIO(answer)).read_all()
    assert table["cell"].to_pylist() == list(shuffled.obs_names)
    np.testing.assert_allclose(np.stack(table["embedding"].to_numpy()), expected, atol=1e-5)


def test_the_model_is_described(service):
    status, answer, _ = service.ask("/model")
    found = json.loads(answer)
    assert (status, found["uri"], found["dim"], found["objective"]) == (
        *(200, "models:/served/1"),
        *(service.learner.encoder.dim, "masked"),
    )
    assert found["genes"] == list(service.cells.var_names)
    assert found["drift"] is True


def test_who_has_no_token_learns_whether_it_lives(service):
    assert service.ask("/healthz", token=None)[0] == 200
    for path, body in (("/model", None), ("/embed", b"{}")):
        for token in (None, "x" * 64, TOKEN[:-1]):
            status, answer, headers = service.ask(path, body, token=token)
            assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
            assert TOKEN not in answer.decode()


def test_bad_requests_are_answered_in_a_line(service):
    zeros = [0] * service.cells.n_vars
    kind = {"Content_Type": "application/json"}
    for (status, answer, _), wanted, said in (
        (service.ask("/embed", b"{", **kind), 400, "Invalid JSON"),
        (service.ask("/embed", b"x" * (2 << 20), **kind), 413, "larger than 1 MiB"),
        (service.ask("/embed", b"a,b", Content_Type="text/csv"), 415, "text/csv"),
        (service.embed(counts=[[0.5, *zeros[1:]]]), 422, "0.5, which is no count"),
        (service.embed(counts=[[-1, *zeros[1:]]]), 422, "-1, which is no count"),
        (service.embed(genes=["A"], counts=[[1]]), 422, "no gene in common"),
        (service.ask("/embed"), 405, "send it a POST"),
        (service.ask("/"), 404, "/embed"),
    ):
        document = json.loads(answer)
        assert status == wanted, document
        assert set(document) == {"error", "mend"}
        assert said in f"{document['error']}; {document['mend']}"
        assert "Traceback" not in answer.decode()


def test_who_sends_much_sees_why_it_is_refused(service):
    """And no broken pipe: the connection is not closed while it sends."""
    large = b"x" * (3 << 20)
    for path, token, status in (
        *[("/embed", TOKEN, 413), ("/embed", "wrong", 401)] * 10,
        *[("/embeddings", TOKEN, 404), ("/healthz", TOKEN, 405)] * 5,
    ):
        assert service.ask(path, large, token, Content_Type="application/json")[0] == status


def test_a_body_without_a_length_is_cut_off(service):
    host, _, port = service.url.removeprefix("http://").partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=120)
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    parts = (b"x" * (1 << 18) for _ in range(8))
    connection.request("POST", "/embed", parts, headers, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


def test_prometheus_sees_requests_and_drift(service, ray_cluster):
    counts = csr_matrix(service.cells.X)[:600] * 4  # four times as deep as the training's
    status, _, _ = service.embed(counts=counts.toarray().tolist())
    assert status == 200

    names = {name for name, _ in DRIFT.values()}
    found = until(
        lambda: published(ray_cluster),
        lambda found: (
            names <= {key[0] for key in found} and (REQUESTS[0], "/embed", "200") in found
        ),
    )
    assert found[(DRIFT["library"][0],)] > 0.3
    assert found[(DRIFT["detection"][0],)] < 0.05
    assert found[(CELLS[0],)] >= 600
    assert found[(f"{SECONDS[0]}_count", "/embed")] >= 1


def test_an_alias_that_moves_is_followed_and_a_bug_shows_no_traceback(service):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{service.log.parent}/mlflow.db")
        promote("served", source="2")
    found = until(lambda: service.ask("/healthz")[1], lambda found: b"models:/served/2" in found)
    assert json.loads(found)["model"] == "models:/served/2"
    status, answer, _ = service.embed(counts=[[1] * service.cells.n_vars])
    assert status == 500  # this model's weights are no numbers
    assert json.loads(answer) == {
        "error": "this request has met a bug",
        "mend": "its traceback is in the replica's log",
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--host", "0.0.0.0"], "0.0.0.0 is open to other machines"),
        ([], "no registered model 'absent'"),
    ],
)
def test_what_cannot_be_served_is_said_at_once(words, said, tmp_path):
    env = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    env.pop("CELLRAY_SERVE_TOKEN", None)
    done = subprocess.run(
        [sys.executable, "-m", "cellray", "serve", "models:/absent", *words],
        env=env,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {said}")
