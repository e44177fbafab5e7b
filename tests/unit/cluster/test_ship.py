"""What a job takes along, and how its words are written anew."""

import os
import shutil
import time
import zipfile
from pathlib import Path

import pytest
import typer.main

import cellray
from cellray.cli import app, main
from cellray.cluster import ship
from cellray.cluster.ship import Shipment, newest_wheel
from cellray.cluster.words import fit_words, title
from cellray.core.errors import CellrayError
from cellray.core.recipe import Recipe
from cellray.core.settings import change_of
from cellray.evaluation.suite import Suite
from cellray.pipeline.settings import Pipeline
from cellray.submitting import VERBS, parse
from cellray.tuning.settings import Sweep

ROOT = Path(__file__).parents[3]


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A working folder with a recipe, gene sets that it names, and things that stay."""
    folder = tmp_path / "work"
    (folder / "configs").mkdir(parents=True)
    (folder / "sets.gmt").write_text("set\tabout\ta\tb\n")
    (folder / "configs" / "recipe.yaml").write_text(
        "views:\n- name: programme_mask\n  gene_sets: sets.gmt\n"
    )
    (folder / ".venv").mkdir()
    (folder / "atlas.zarr").mkdir()
    (folder / "cells.h5ad").write_text("counts")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def shipment(tmp_path):
    (tmp_path / "shipped").mkdir()
    return Shipment(tmp_path / "shipped")


def fit(shipment, *words):
    """Fit the words of a verb as ``cellray submit`` does."""
    return fit_words(*parse(typer.main.get_command(app), words[0], words[1:]), shipment)


def shipped(shipment):
    return {
        str(path.relative_to(shipment.job)) for path in shipment.job.rglob("*") if path.is_file()
    }


def test_the_recipe_and_what_it_names_are_shipped_and_nothing_else(work, shipment):
    words = ["--recipe", "configs/recipe.yaml", "--atlas", "atlas.zarr", "--name=x"]
    fitted = fit(shipment, "pretrain", *words, "--set", "train.epochs=3", "--set", "seed=1")
    assert shipped(shipment) == {"configs/recipe.yaml", "sets.gmt"}
    assert shipment.absent == []
    assert fitted.places == [str(work / "atlas.zarr")]
    assert fitted.words == [
        f"--atlas={work}/atlas.zarr",
        "--name=x",
        "--recipe=configs/recipe.yaml",
        "--set=train.epochs=3",
        "--set=seed=1",
    ]
    assert fitted.values["name"] == "x"


def test_the_words_parse_again_to_the_same_values(work, shipment):
    given = ["cells.h5ad", "--out", "s3://b/x/", "--obs=-odd,b", "--append", "--memory", "3"]
    fitted = fit(shipment, "ingest", *given)
    assert fitted.words[-1] == str(work / "cells.h5ad")
    again = fit(shipment, "ingest", *fitted.words)
    assert again.words == fitted.words
    assert again.values | {"sources": [Path("cells.h5ad")], "out": "s3://b/x/"} == fitted.values
    assert shipped(shipment) == set()


def test_files_from_elsewhere_get_names_of_their_own(work, shipment, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.yaml").write_text("seed: 0\n")
    one, two = (f"elsewhere{tmp_path}/{name}/recipe.yaml" for name in ("one", "two"))
    assert shipment.add(tmp_path / "one" / "recipe.yaml") == one
    assert shipment.add("../two/recipe.yaml") == two
    assert shipped(shipment) == {one, two}


def test_a_sweep_finds_its_recipe_from_its_own_folder(work, shipment, monkeypatch):
    (work / "configs" / "sweep").mkdir()
    sweep = work / "configs" / "sweep" / "sweep.yaml"
    sweep.write_text("recipe: {base: ../recipe.yaml}\n")
    assert shipment.add("configs/sweep/sweep.yaml") == "configs/sweep/sweep.yaml"
    # What the recipe names is found from the working folder.
    assert shipped(shipment) == {"configs/sweep/sweep.yaml", "configs/recipe.yaml", "sets.gmt"}

    monkeypatch.chdir(work / "configs" / "sweep")
    name = shipment.add("sweep.yaml")
    assert name == f"elsewhere{sweep}"
    assert (shipment.job / name).read_text() == sweep.read_text()
    assert (shipment.job / name).parents[1].joinpath("recipe.yaml").is_file()


@pytest.mark.parametrize(
    "file", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda file: "-".join(file.parts[-2:])
)
def test_every_recipe_reads_the_same_where_it_was_shipped(file, shipment, monkeypatch):
    monkeypatch.chdir(ROOT)
    name = shipment.add(file.relative_to(ROOT))
    kinds = {"sweep": Sweep, "evaluate": Suite, "pipeline": Pipeline}
    read = kinds.get(file.parent.name, Recipe).load
    here = read(name)
    monkeypatch.chdir(shipment.job)
    assert read(name) == here
    assert shipment.absent == []


def test_a_changed_key_may_name_a_file(work, shipment):
    words = ["--atlas", "s3://b/a", "--name", "x", f"--set=views.0.gene_sets={work}/sets.gmt"]
    fitted = fit(shipment, "pretrain", *words)
    assert fitted.words[-1] == "--set=views.0.gene_sets=sets.gmt"
    assert shipped(shipment) == {"sets.gmt"}
    assert fitted.places == []


def test_a_changed_section_may_name_files(work, shipment, tmp_path):
    (tmp_path / "genes of ours.gmt").write_text("set\tabout\ta\tb\n")
    kept = "optim={lr: 1e-3, schedule: step}"
    views = f"views=[{{name: programme_mask, gene_sets: '{tmp_path}/genes of ours.gmt'}}]"
    fitted = fit(shipment, "pretrain", "--set", views, "--set", kept)
    file = f"elsewhere{tmp_path}/genes of ours.gmt"
    assert shipped(shipment) == {file}
    key, value = change_of(fitted.words[0].removeprefix("--set="))
    assert (key, value) == ("views", [{"name": "programme_mask", "gene_sets": file}])
    assert fitted.words[1] == f"--set={kept}"


def test_an_atlas_of_a_changed_key_is_named_as_other_atlases(work, shipment):
    fitted = fit(
        shipment,
        *("pretrain", "--set", "probe.atlas=atlas.zarr"),
        *("--set", "probe={label: x, atlas: s3://b/a}"),
    )
    assert fitted.words[0] == f"--set=probe.atlas={work}/atlas.zarr"
    assert fitted.words[1] == "--set=probe={label: x, atlas: s3://b/a}"
    assert fitted.places == [f"{work}/atlas.zarr"]
    assert fitted.read_from_here == [("atlas", "atlas.zarr")]


@pytest.mark.parametrize("out", ["s3://b/embedded/", "embedded/", "s3://b/embedded.zarr"])
def test_a_folder_of_parquet_stays_one(work, shipment, out):
    fitted = fit(shipment, "embed", "models:/m@champion", "--atlas=s3://b/a", f"--out={out}")
    (word,) = [one for one in fitted.words if one.startswith("--out=")]
    assert word.endswith(out)


def test_what_a_suite_names_and_is_data_stays_and_is_said(work, shipment):
    entry = f"{{reference: {work}/atlas.zarr}}"
    (work / "suite.yaml").write_text(f"tasks:\n  mapping: {entry}\n  annotation: {entry}\n")
    words = ["models:/x/1", "--atlas", "s3://b/a", "--suite", "suite.yaml"]
    fit(shipment, "evaluate", *words)
    assert shipment.absent == [f"suite.yaml names {work}/atlas.zarr"]
    assert shipped(shipment) == {"suite.yaml"}


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ("probe: {label: x, atlas: atlas.zarr}", "atlas.zarr"),
        ("probe: {label: x, atlas: nosuch}", "nosuch"),
        ("views: [{name: programme_mask, gene_sets: ../above}]", "../above"),
    ],
)
def test_what_a_recipe_names_from_here_and_stays_is_refused(work, shipment, settings, named):
    (work.parent / "above").write_text("set\tabout\ta\tb\n")
    (work / "recipe.yaml").write_text(settings)
    with pytest.raises(CellrayError, match=f"recipe.yaml names {named} by a path from this folder"):
        shipment.add("recipe.yaml")


def test_a_file_of_a_place_that_names_files_needs_no_suffix(work, shipment):
    (work / "sets").write_text("set\tabout\ta\tb\n")
    (work / "masked").write_text("a word of the recipe")
    (work / "recipe.yaml").write_text(
        "objective: {name: masked}\nviews: [{name: programme_mask, gene_sets: sets}]\n"
    )
    shipment.add("recipe.yaml")
    assert shipped(shipment) == {"recipe.yaml", "sets"}
    fitted = fit(shipment, "pretrain", "--set", f"views.0.gene_sets={work}/sets")
    assert fitted.words == ["--set=views.0.gene_sets=sets"]


def test_a_pipelines_recipe_is_shipped_and_not_said_to_stay(work, shipment, monkeypatch):
    """It is found from the pipeline's folder, which may be this one."""
    (work / "configs" / "pipeline").mkdir()
    (work / "configs" / "pipeline" / "plates.yaml").write_text(
        "name: plates\npretrain: {recipe: ../recipe.yaml}\n"
    )
    monkeypatch.chdir(work / "configs" / "pipeline")
    name = shipment.add("plates.yaml")
    assert shipped(shipment) == {name, f"elsewhere{work}/configs/recipe.yaml"}
    assert shipment.absent == []


def test_a_suite_that_comes_with_cellray_is_no_file(work, shipment):
    words = ["--suite", "standard", "--atlas", "s3://b/a"]
    assert fit(shipment, "leaderboard", *words).words[0] == "--suite=standard"
    assert shipped(shipment) == set()


def test_large_and_absent_files_are_refused(work, shipment, monkeypatch):
    with pytest.raises(CellrayError, match="no file nosuch"):
        shipment.add("nosuch.yaml")
    monkeypatch.setattr(ship, "LARGEST", 10)
    with pytest.raises(CellrayError, match="not shipped with a job; put it where"):
        shipment.add("configs/recipe.yaml")


def test_the_code_is_the_package_and_no_more(shipment):
    shipment.add_code()
    sent = {str(path.relative_to(shipment.folder)) for path in shipment.folder.rglob("*")}
    assert {"code/cellray/cli.py", "code/cellray/evaluation/suites/standard.yaml"} <= sent
    assert not [name for name in sent if "__pycache__" in name]
    assert {path.name for path in (shipment.folder / "code").iterdir()} == {"cellray"}
    assert shipment.code == str(Path(cellray.__file__).parent)
    assert shipment.code_files > 200
    assert 500_000 < shipment.code_bytes < 10_000_000
    assert shipment.runtime_env()["py_modules"] == [str(shipment.folder / "code" / "cellray")]


def test_a_wheel_counts_only_when_it_is_newer_and_of_this_version(tmp_path):
    package = tmp_path / "platform" / "cellray"
    package.mkdir(parents=True)
    (package / "cli.py").write_text("")
    dist = tmp_path / "dist"
    dist.mkdir()
    other = dist / "cellray-9.9.9-py3-none-any.whl"
    built = dist / f"cellray-{cellray.__version__}-py3-none-any.whl"
    other.write_text("")
    assert newest_wheel(package) is None
    built.write_text("")
    assert newest_wheel(package) == built
    later = time.time() + 5
    os.utime(package / "cli.py", (later, later))
    assert newest_wheel(package) is None


def test_a_wheel_is_shipped_unpacked(shipment, tmp_path, monkeypatch):
    """Ray would install it with all that it depends on, from a package index."""
    wheel = tmp_path / "cellray.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("cellray/__init__.py", "")
        archive.writestr("cellray-1.dist-info/METADATA", "")
    monkeypatch.setattr(ship, "newest_wheel", lambda package: wheel)
    shipment.add_code()
    assert [str(p.relative_to(shipment.folder)) for p in shipment.folder.rglob("*.py")] == [
        "code/cellray/__init__.py"
    ]
    assert (shipment.code, shipment.code_files) == (str(wheel), 1)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"name": "plates", "atlas": "s3://b/pbmc.zarr"}, "plates"),
        ({"model": "models:/plates@champion", "atlas": "x"}, "plates@champion"),
        ({"out": "s3://b/pbmc.zarr/"}, "pbmc"),
        ({"names": ["a", "b"]}, "a"),
        ({}, ""),
    ],
)
def test_a_job_is_named_after_what_it_is_about(values, name):
    assert title(values) == name


def test_every_verb_is_a_command():
    root = typer.main.get_command(app)
    for path in VERBS.values():
        command = root
        for word in path:
            command = command.commands[word]


def test_a_pipelines_places_are_not_those_of_this_folder(work, monkeypatch, capfd):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    text = (ROOT / "configs" / "pipeline" / "plates.yaml").read_text()
    shutil.copytree(ROOT / "configs" / "pretrain", work / "pretrain")
    file = work / "configs" / "plates.yaml"
    for told, said in (
        (text.replace("  storage:", "  # storage:"), "names no storage for checkpoints"),
        (text, "names plate1.h5ad by a path from this folder"),
        (text.replace("[plate1.h5ad, plate2.h5ad]", "[s3://b/x.h5ad]"), "names plates.zarr by"),
    ):
        file.write_text(told)
        assert main(["submit", "pipeline", "configs/plates.yaml"]) == 2
        assert said in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pretrian"], "no verb 'pretrian' to submit; did you mean 'pretrain'?"),
        (["pretrain", "--recipee", "x"], "No such option: --recipee"),
        (["evaluate", "models:/x"], "Missing option '--atlas'"),
        (["pretrain", "--set", "train.epoch=3"], "did you mean 'train.epochs'?"),
        (["pretrain", "--env", "AWS_SECRET_ACCESS_KEY=x"], "set AWS_SECRET_ACCESS_KEY in the"),
        (["pretrain", "--env", "X=http://a:b@c"], "--env X looks like a secret"),
        (["pretrain", "--atlas", "https://ann:pw@host/x"], "https://***@host/x holds a password"),
        (["pretrain", "--env", "X"], "--env X is no KEY=VALUE"),
        (["pretrain", "--resources", "memory=4x"], "give it as 4GiB"),
        (["pretrain", "--recipe", "nosuch.yaml"], "no file nosuch.yaml"),
        (["pretrain", "--name", "x"], "--atlas is missing; give --atlas, or go on with --resume"),
        (["pretrain", "--atlas", "s3://b/a"], "--name is missing; give --name"),
        (["pretrain", "--resume", "4f1c", "--name", "x"], "--name beside --resume"),
        (
            ["pretrain", "--strategy", "fsdp", "--set", "train.compression=powersgd"],
            "is only of train.strategy=ddp",
        ),
        (["pretrain", "--atlas", "nosuch.zarr", "--name", "x"], "nosuch.zarr"),
        (["pretrain", "--atlas", "atlas.zarr", "--name", "x"], "/atlas.zarr"),
        (
            [
                "pretrain",
                "--atlas=s3://b/a",
                "--name=x",
                "--set=probe={label: x, atlas: nosuch.zarr}",
            ],
            "nosuch.zarr",
        ),
        (["sweep", "--atlas", "s3://b/a", "--name", "x"], "--recipe is missing"),
        (["sweep", "--resume", "4f1c", "--label", "x"], "--label beside --resume"),
        (["inspect", "nosuch.zarr"], "nosuch.zarr"),
        (["ingest", "cell.h5ad", "--out", "s3://b/a"], "no file cell.h5ad; did you mean"),
        (["embed", "models:/x/1", "--atlas", "s3://b/a", "--out", "z.csv"], "cannot tell what"),
        (
            ["embed", "models:/x/1", "--atlas=s3://b/a", "--out=z.h5ad", "--key", "-"],
            "cannot name embeddings in obsm",
        ),
        (["evaluate", "models:/x/1", "--atlas", "s3://b/a", "--gate"], "--gate needs gates"),
        (
            ["evaluate", "models:/x/1", "--atlas=s3://b/a", "--suite=standard", "--task=mapping"],
            "--task and --suite are both given",
        ),
    ],
)
def test_slips_are_refused_before_anything_is_sent(words, said, work, monkeypatch, capfd):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    assert main(["submit", *words]) == 2
    line = capfd.readouterr().err.strip()
    assert said in line
    assert "\n" not in line
    assert "pw" not in line.replace("nosuch", "")
