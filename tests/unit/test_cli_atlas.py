"""The verbs of atlases: what they refuse, and what they say beside their answers."""

import json
import re
import shlex
import subprocess
import sys

import pandas as pd
import pytest
import zarr

from cellray.atlas.describe import describe
from cellray.atlas.simulate import Simulation, simulate_anndata
from cellray.atlas.store import Atlas
from cellray.cli import main


def write(path, seed=1, **columns):
    """Write 120 simulated cells with more obs columns."""
    data = simulate_anndata(Simulation(n_cells=120, n_genes=60, seed=seed))
    for name, column in columns.items():
        data.obs[name] = column
    data.write_h5ad(path)
    return str(path)


@pytest.fixture(scope="module")
def h5ad(tmp_path_factory):
    return write(tmp_path_factory.mktemp("cli") / "cells.h5ad")


@pytest.fixture(scope="module")
def atlas(h5ad, tmp_path_factory):
    url = tmp_path_factory.mktemp("cli") / "atlas"
    assert main(["ingest", h5ad, "--out", str(url)]) == 0
    return str(url)


PLAN = ["inspect", "{atlas}", "--plan", "--set", "data.batch_size=16", "--set"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ingest", "{h5ad}", "--out", ""], "an empty URL; give a folder"),
        (["ingest", "{h5ad}", "--out", "{atlas}/b"], "/b lies inside the atlas .*; choose another"),
        (
            ["ingest", "{h5ad}", "--out", "a", "--join", "outer", "--genes", "{h5ad}"],
            "a vocabulary says which genes there are, and so does an outer join; leave out",
        ),
        (["ingest", "{h5ad}", "--out", "a", "--layer", "raw"], "no layer 'raw'; choose from: X"),
        (
            ["ingest", "{h5ad}", "--out", "a", "--matrices", "obsm/p"],
            "no matrix 'obsm/p' .*; leave out --matrices: it holds nothing beside its counts",
        ),
        (["split", "{atlas}", "--name", "s", "--seed", "-4"], "seed -4 is negative; give 0 or mor"),
        (["inspect", "{atlas}", "--plan", "--verify"], "a plan reads no content to verify; leave"),
        ([*PLAN, "data.obs=[doner]"], "no obs column 'doner'; did you mean 'donor'"),
        ([*PLAN, "data.obs=[cellray_name]"], "'cellray_name' holds .* cannot be trained on; leave"),
        ([*PLAN, "data.matrices=[obsm/p]"], "no matrix 'obsm/p'; name it when you ingest"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_named_in_one_line(words, said, h5ad, atlas, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert main([word.format(atlas=atlas, h5ad=h5ad) for word in words]) == 2
    assert re.fullmatch(f"error: .*{said}.*\n", capfd.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_a_plan_of_damaged_shards_is_refused(h5ad, tmp_path, capfd):
    assert main(["ingest", h5ad, "--out", str(tmp_path / "a")]) == 0
    (tmp_path / "a" / "X" / "data" / "c" / "0").unlink()
    words = [word.format(atlas=tmp_path / "a") for word in PLAN[:-1]]
    capfd.readouterr()
    assert main(words) == 2
    assert "X/data: shard 0, which holds cells 0 to 0, is gone" in capfd.readouterr().err


def test_verified_content_is_said_so_and_changed_content_is_an_error(h5ad, tmp_path, capfd):
    url = tmp_path / "a"
    assert main(["ingest", h5ad, "--out", str(url)]) == 0
    capfd.readouterr()
    assert main(["inspect", str(url), "--verify"]) == 0
    out, err = capfd.readouterr()
    assert re.search(r"^digest +[0-9a-f]{64}\nverified +all was read anew$", out, re.MULTILINE)
    assert "verify 120/120 100%" in err
    assert main(["inspect", str(url), "--verify", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == json.loads(
        json.dumps(describe(Atlas.open(str(url))) | {"verified": True})
    )
    column = zarr.open_array(url / "obs" / "donor" / "codes", mode="r+")
    column[7] = (column[7] + 1) % 4
    assert main(["inspect", str(url)]) == 0
    assert "\nverified" not in capfd.readouterr().out
    assert main(["inspect", str(url), "--verify"]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    said = f"error: {url} .cells 0 to 119. is not as it was written: .*; copy the atlas again, .*"
    assert re.fullmatch(said, err.splitlines()[-1])


def test_a_plan_says_what_its_memory_leaves_out(atlas, capfd):
    assert main([word.format(atlas=atlas) for word in PLAN[:-1]]) == 0
    (line,) = [line for line in capfd.readouterr().out.splitlines() if line.startswith("memory")]
    assert line.endswith("the model, its activations and Ray's object store come on top")


def test_what_comes_next_can_be_pasted(h5ad, tmp_path, capfd, monkeypatch):
    script = str(tmp_path / "my bin" / "cellray")
    monkeypatch.setattr("sys.argv", [script])
    url = str(tmp_path / "it's an atlas")
    assert main(["ingest", h5ad, "--out", url]) == 0
    words = shlex.split(capfd.readouterr().out.splitlines()[-1].removeprefix("next: "))
    assert words == [script, "inspect", url]
    assert main(["split", url, "--name", "held"]) == 0
    words = shlex.split(capfd.readouterr().out.splitlines()[-1].removeprefix("next: "))
    assert words[:4] == [script, "pretrain", "--atlas", url]


def test_an_append_says_what_others_see_and_what_becomes_text(tmp_path, capfd, caplog):
    texts = pd.array(["s"] * 120, dtype=object)
    first = write(tmp_path / "first.h5ad", age=1, kept=1, done=True)
    second = write(tmp_path / "second.h5ad", seed=2, age=texts, kept=2, new="x")
    third = write(tmp_path / "third.h5ad", seed=3, age=texts, kept=0.5, done=1)
    out = str(tmp_path / "a")
    assert main(["ingest", first, "--out", out]) == 0
    assert caplog.messages == []
    assert "read_zarr" not in capfd.readouterr().out
    assert main(["ingest", second, "--out", out, "--append"]) == 0
    assert caplog.messages == ["obs column 'age' becomes text: numbers in first; text in second"]
    out_text = capfd.readouterr().out
    assert f"read_zarr('{out}') sees the first 120 cells; the others" in out_text
    assert " at parts/1 below it" in out_text
    assert main(["ingest", third, "--out", out, "--append"]) == 0
    (_, note) = caplog.messages
    assert note == "obs column 'done' becomes text: numbers in third; truth values in first"
    assert " at parts/1 to parts/2 below it" in capfd.readouterr().out
    obs = Atlas.open(out).obs()
    assert obs["kept"].dtype == "float64"
    assert set(obs["age"]) == {"1", "s"}
    assert set(obs["done"].dropna()) == {"True", "1"}


def run_as_module(*words):
    return subprocess.run(
        [sys.executable, "-m", "cellray", *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )


def test_a_join_says_what_becomes_text(tmp_path):
    texts = pd.array(["s"] * 120, dtype=object)
    gaps = pd.array([True, None] * 60, dtype="boolean")
    long = pd.array([2**53 + 1, None] * 60, dtype="Int64")
    first = write(tmp_path / "first.h5ad", age=1, done=gaps, id=long)
    second = write(tmp_path / "second.h5ad", seed=2, age=texts, id=3)
    done = run_as_module("ingest", first, second, "--out", str(tmp_path / "a"))
    assert [line for line in done.stderr.splitlines() if "%" not in line] == [
        "obs column 'age' becomes text: numbers in first; text in second",
        "obs column 'id' becomes text: numbers in first, second",
    ]
    done = Atlas.open(str(tmp_path / "a")).obs(["done"])["done"]
    assert list(done.cat.categories) == [True]
    assert done.isna().sum() == 180
