"""The command line: help, answers, errors, exit codes."""

import json
import re
import shlex
from pathlib import Path

import pytest
import typer.main
from tests.pages import verb_of

from cellray.atlas.describe import describe
from cellray.atlas.simulate import Simulation, simulate_anndata
from cellray.atlas.store import Atlas
from cellray.cli import app, main, user_error
from cellray.cli_verbs import words as words_of
from cellray.core.errors import CellrayError
from cellray.core.recipe import Recipe

ROOT = Path(__file__).parents[2]


def commands(command=None, path=()):
    """Give the words and the command of every verb."""
    command = command or typer.main.get_command(app)
    if not hasattr(command, "commands"):
        return [(path, command)]
    return [
        found
        for name, child in command.commands.items()
        for found in commands(child, (*path, name))
    ]


VERBS = {" ".join(path): command for path, command in commands()}


@pytest.fixture(scope="module")
def h5ad(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "cells.h5ad"
    simulate_anndata(Simulation(n_cells=120, n_genes=60, seed=1)).write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def atlas(h5ad, tmp_path_factory):
    url = tmp_path_factory.mktemp("cli") / "atlas"
    assert main(["ingest", str(h5ad), "--out", str(url)]) == 0
    return str(url)


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """An empty working folder, and no servers configured."""
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_the_verbs_are_those_of_the_house():
    wanted = (
        "ingest inspect split pretrain evaluate embed ui demo models\\ list models\\ show models\\ "
    )
    assert set(VERBS) >= set(shlex.split(f"{wanted}promote"))


@pytest.mark.parametrize("verb", VERBS)
def test_help_explains_every_option_and_takes_json(verb):
    command = VERBS[verb]
    assert command.help
    names = {name for parameter in command.params for name in parameter.opts}
    assert "--json" in names
    assert [p.name for p in command.params if not getattr(p, "help", None)] == []


@pytest.mark.parametrize("verb", VERBS)
def test_examples_in_the_help_parse(verb, parse_command):
    lines = [shlex.split(line) for line in (VERBS[verb].epilog or "").splitlines()[2:]]
    ours = [words for line in lines if (words := verb_of(line)) is not None]
    assert any(" ".join(words).startswith(verb) for words in ours)
    for words in ours:
        parse_command(words)


def test_nothing_shows_help(capfd):
    assert main([]) == 0
    assert "ingest" in capfd.readouterr().out


def test_version(capfd):
    from cellray import __version__

    assert main(["--version"]) == 0
    assert capfd.readouterr().out == f"cellray {__version__}\n"


def test_ingest_answers_with_what_it_wrote(h5ad, tmp_path, capfd):
    words = ["ingest", str(h5ad), "--out", str(tmp_path / "a"), "--seed", "5", "--json"]
    assert main([*words, "--obs", "cell_type, donor"]) == 0
    out, err = capfd.readouterr()
    document = json.loads(out)
    assert document.pop("seconds") > 0
    written = Atlas.open(str(tmp_path / "a"))
    assert document == json.loads(json.dumps(describe(written)))
    assert document["seed"] == 5
    assert {"cell_type", "donor"} <= set(written.obs_columns)
    assert "batch" not in written.obs_columns
    assert re.search(r"write 120/120 100%", err)


def test_inspect_for_people_and_for_programs(atlas, capfd):
    assert main(["inspect", atlas]) == 0
    text = capfd.readouterr().out
    document = describe(Atlas.open(atlas))
    for words in (document["digest"], "120, shuffled", "stored as uint16", "cell_type", "donor"):
        assert words in text
    assert main(["inspect", atlas, "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == json.loads(json.dumps(document))


def test_inspect_a_plan_for_people_and_for_programs(atlas, capfd):
    words = ["inspect", atlas, "--plan", "--label", "donor", "--set", "data.batch_size=16"]
    assert main([*words, "--num-workers", "2"]) == 0
    text = capfd.readouterr().out
    assert "108 cells in 6 slabs and 6 steps" in text
    assert "12 cells an epoch left out" in text
    assert "180 steps on 2 workers" in text
    assert main([*words, "--set", "data.tail=pad", "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert document["plan"]["steps_per_epoch"] == 7
    assert (document["tail"], document["tail_cells"]) == ("pad", 4)
    assert 0 < document["entropy"]["batch"] <= document["entropy"]["epoch"]
    assert document["gets"]["epoch"] == 7 * document["gets"]["slab"]


def test_a_split_is_made_once_listed_and_named(h5ad, tmp_path, capfd):
    url = str(tmp_path / "atlas")
    assert main(["ingest", str(h5ad), "--out", url]) == 0
    capfd.readouterr()
    words = ["split", url, "--name", "held", "--by", "donor", "--values", "donor_0"]
    assert main([*words, "--test-values", "donor_1, donor_2", "--json"]) == 0
    facts = json.loads(capfd.readouterr().out)
    counts = Atlas.open(url).obs(["donor"])["donor"].value_counts()
    assert facts["cells"]["validation"] == counts["donor_0"]
    assert facts["cells"]["test"] == counts["donor_1"] + counts["donor_2"]
    assert main(["inspect", url]) == 0
    assert f"{facts['cells']['train']} train" in capfd.readouterr().out
    assert main(["inspect", url, "--plan", "--json", "--set", "data.split=held"]) == 2
    assert "do not fill one batch" in json.loads(capfd.readouterr().out)["error"]
    assert main(words) == 2
    assert "already" in capfd.readouterr().err
    words[3] = "other"
    assert main([*words, "--test", "0.2"]) == 2
    assert "said twice, by values and by fractions; leave out --test" in capfd.readouterr().err


def test_a_word_of_a_list_may_hold_a_comma():
    assert words_of('"CD4+, naive", B ,') == ["CD4+, naive", "B"]
    assert words_of("") == []
    assert words_of(None) is None


@pytest.mark.parametrize("flag", [[], ["--json"]])
def test_a_users_error_is_one_line_and_exit_2(flag, tmp_path, capfd):
    assert main(["inspect", str(tmp_path / "nothing"), *flag]) == 2
    out, err = capfd.readouterr()
    assert re.fullmatch(r"error: no atlas at .*nothing.*; check the path\n", err)
    if flag:
        document = json.loads(out)
        assert list(document) == ["error", "mend"]
        assert err == f"error: {document['error']}; {document['mend']}\n"
    else:
        assert out == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ingst"], "'ingst'.*ingest.*cellray --help"),
        (["ingest"], "Missing.*cellray ingest --help"),
        (["models", "shw"], "'shw'.*'show'.*cellray models --help"),
        (["inspect", "a", "--lable", "b"], "--lable.*--label.*cellray inspect --help"),
        (["inspect", "a", "--nonsense"], "--nonsense.*cellray inspect --help"),
        (["inspect", "{atlas}", "--label", "donor"], "add --plan"),
        (["inspect", "{atlas}", "--plan", "--set", "data.balance=doner"], "did you mean 'donor'"),
        (["split", "{atlas}", "--name", "s", "--by", "doner"], "did you mean 'donor'"),
        (["split", "{atlas}", "--name", "s", "--by", "donor", "--values", "x"], "no value 'x'"),
        (["pretrain", "--atlas", "a", "--name", "b", "--strategy", "x"], "strategy.*'ddp', 'fsdp'"),
        (["models"], "cellray models --help"),
        (["ui", "--port", "0"], "port"),
        (["demo", "--label", "cell_type"], "--h5ad and --label go together"),
        (["models", "promote", "m"], "--from.*cellray models promote --help"),
        (["models", "promote", "m", "--from", "1"], "no registered model 'm'"),
        (["models", "promote", "m", "--from", "1", "--to", "2"], "'2' cannot be an alias"),
        (["models", "show", "m"], "no registered model 'm'"),
        (["evaluate", "nonsense", "--atlas", "{atlas}", "--label", "cell_type"], "no model URI"),
        (["evaluate", "models:/m/1", "--atlas", "{atlas}", "--label", "celltype"], "'cell_type'"),
        (["pretrain", "--atlas", "{atlas}", "--name", "m", "--set", "trian.epochs=1"], "'train"),
        (["pretrain", "--atlas", "{atlas}", "--name", "m", "--recipe", "no.yaml"], "no.yaml"),
        (["ingest", "no.h5ad", "--out", "a"], "no.h5ad"),
        (["sweep"], "--recipe is missing.*--resume SWEEP"),
        (["sweep", "--recipe", "maskd.yaml"], "no file maskd.yaml"),
        (["sweep", "--recipe", "{pretrain}"], "'space': Field required.*configs/sweep/"),
        (["sweep", "--recipe", "{sweep}"], "--atlas is missing.*--resume SWEEP"),
        (["sweep", "--recipe", "{sweep}", "--atlas", "{atlas}"], "--name is missing"),
        (["sweep", "--recipe", "{sweep}", "--atlas", "no", "--name", "m"], "no atlas at .*/no: "),
        (["sweep", "--recipe", "{sweep}", "--set", "trian.epochs=1"], "'trian.*'train"),
        (["sweep", "--recipe", "{sweep}", "--metric", "loss"], "metric.*'knn_macro_f1'"),
        (["sweep", "--recipe", "{sweep}", "--trials", "0"], "trials.*cellray sweep --help"),
        (["sweep", "--recipe", "{sweep}", "--hours", "0"], "'budget.hours'.*greater than 0"),
        (["sweep", "--resume", "a", "--name", "m"], "--name beside --resume.*leave --name out"),
        (["sweep", "--resume", "a", "--set", "optim.lr=1"], "--set beside --resume"),
        (["sweep", "--resume", "a", "--warm-start", "b"], "--warm-start beside --resume"),
        (["sweep", "--resume", "a", "--metric", "knn_macro_f1"], "--metric beside --resume"),
        (["sweep", "--resume", "4f1c", "--trials", "3"], "no sweep 4f1c in this tracking store"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_named_in_one_line(words, said, alone, atlas, capfd):
    files = {verb: ROOT / "configs" / verb / "masked.yaml" for verb in ("pretrain", "sweep")}
    words = [word.format(atlas=atlas, **files) for word in words]
    assert main(words) == 2
    out, err = capfd.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert re.match(f"error: .*{said}", line)


def test_a_refused_recipe_leaves_nothing_behind(alone, atlas):
    assert main(["pretrain", "--atlas", atlas, "--name", "m", "--set", "optim.lr=-1"]) == 2
    assert list(alone.iterdir()) == []


def test_a_bug_shows_its_traceback_and_exits_1(monkeypatch, capfd):
    def fail(url):
        raise ZeroDivisionError

    monkeypatch.setattr(Atlas, "open", fail)
    assert main(["inspect", "a", "--json"]) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert "Traceback" in err
    assert "ZeroDivisionError" in err


def test_ctrl_c_exits_130_in_one_line(monkeypatch, capfd):
    def interrupt(url):
        raise KeyboardInterrupt

    monkeypatch.setattr(Atlas, "open", interrupt)
    assert main(["inspect", "a"]) == 130
    assert capfd.readouterr().err == "interrupted\n"


def test_the_users_error_is_found_in_rays_wrappings(ray_local):
    import ray
    from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

    @ray.remote
    def fail():
        raise CellrayError("what", "mend")

    with pytest.raises(ray.exceptions.RayTaskError) as caught:
        ray.get(fail.remote())
    original = CellrayError("what", "mend")
    for error in (
        caught.value,
        WorkerGroupError("text", {0: ValueError(), 1: original}),
        ControllerError(caught.value),
    ):
        found = user_error(error)
        assert found is not None
        assert (found.what, found.mend) == ("what", "mend")
    assert user_error(ValueError("a bug")) is None


CONFIGS = [*(ROOT / "configs").glob("*.yaml"), *(ROOT / "configs" / "pretrain").glob("*.yaml")]


@pytest.mark.parametrize("path", sorted(CONFIGS), ids=lambda p: p.stem)
def test_configs_are_recipes_that_can_be_trained(path):
    from cellray.learn.build import check_recipe

    check_recipe(Recipe.load(path))


def test_the_config_of_the_default_method_is_the_default():
    from cellray.core.parts import check_part
    from cellray.objectives.table import OBJECTIVES

    config = Recipe.load(ROOT / "configs" / "pretrain" / "masked.yaml")
    for section in ("data", "optim", "train"):
        assert getattr(config, section) == getattr(Recipe(), section)
    for recipe in (config, Recipe()):
        assert check_part("objective", OBJECTIVES, recipe.objective)["widths"] == (
            256,
            256,
            512,
            512,
        )
