"""Small sweeps, their studies on disk, and Tune's side of a trial."""

import shutil
from types import SimpleNamespace

import pytest
from optuna.storages import RDBStorage

from cellray.tuning.search import StudyScheduler, StudySearch, open_study
from cellray.tuning.settings import Sweep

RATE = {"optim.lr": {"loguniform": [1e-4, 1e-2]}}


@pytest.fixture(scope="session")
def searched():
    """Give a function that makes a sweep, of one metric or of two."""

    def make(space=None, /, *, two=False, **values):
        document = {"space": space or RATE, "recipe": {"probe": {"label": "cell_type"}}}
        metric = ["validation_loss", "knn_macro_f1"] if two else "validation_loss"
        return Sweep.of(document | {"metric": metric} | values)

    return make


@pytest.fixture(scope="session")
def made_study(tmp_path_factory):
    """Make an empty study's file once; making one takes several times as long as copying it."""
    file = tmp_path_factory.mktemp("study") / "study.db"
    RDBStorage(f"sqlite:///{file}").remove_session()
    return file


@pytest.fixture
def url(made_study, tmp_path):
    shutil.copy(made_study, tmp_path / "study.db")
    return f"sqlite:///{tmp_path}/study.db"


class Tune:
    """Does with a sweep's searcher what Tune does, and what a trial tells it."""

    def __init__(self, sweep, url, left=lambda: True, stopped=lambda: False):
        self.sweep = sweep
        self.study = open_study(sweep, "sweep", url)
        self.search = StudySearch(sweep, self.study, left=left, stopped=stopped)
        self._count = 0

    def begin(self):
        """Begin a trial; give Tune's side of it, or the word that there is none."""
        self._count += 1
        config = self.search.suggest(f"t{self._count}")
        if isinstance(config, str):
            return config
        return SimpleNamespace(trial_id=f"t{self._count}", config=config)

    def end(self, trial, *values, error=False, **told):
        """End a trial with the metrics' values, or with what else it tells."""
        names = ("validation_loss", "knn_macro_f1")
        metrics = dict(zip(names, values, strict=False)) | ({"ended": True} if values else {})
        self.search.on_trial_complete(trial.trial_id, metrics | told, error=error)

    def lose(self, trial, error):
        """End a trial as Tune does one whose process was lost, or has raised."""
        trial.get_pickled_error = lambda: error
        StudyScheduler(self.study).on_trial_error(None, trial)
        self.end(trial, error=True)

    def known(self, trial):
        return self.study.get_trials()[trial.config["number"]]


@pytest.fixture
def tune(url):
    """Give a function that begins a session of Tune on the one study there is."""
    return lambda sweep, **settings: Tune(sweep, url, **settings)
