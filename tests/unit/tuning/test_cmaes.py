"""CMA-ES in a study that others may write to: its state is read, and nothing in it is run."""

import pickle

import numpy as np
import optuna
import pytest
from cmaes import CMA
from optuna.samplers import CmaEsSampler
from tests.planted import Planted

from cellray.core.errors import CellrayError
from cellray.tuning.cmaes import PlainCmaEsSampler

STATE = "cma:optimizer"
SPACE = {name: optuna.distributions.FloatDistribution(-1, 1) for name in "ab"}


def made(kind):
    return kind(seed=3, n_startup_trials=2, warn_independent_sampling=False)


def go_on(study, count):
    """Try some points, each by a sampler that knows the study alone, as after a resume."""
    for _ in range(count):
        study.sampler = made(type(study.sampler))
        trial = study.ask(SPACE)
        study.tell(trial, (trial.params["a"] - 0.3) ** 2 + trial.params["b"] ** 2)


def states(study):
    return [one for one in study.get_trials() if any(STATE in key for key in one.system_attrs)]


def test_a_search_goes_on_as_optunas_does():
    ours = optuna.create_study(sampler=made(PlainCmaEsSampler))
    theirs = optuna.create_study(sampler=made(CmaEsSampler))
    for study in (ours, theirs):
        go_on(study, 40)
    assert len(states(ours)) > 2
    assert [one.params for one in ours.trials] == [one.params for one in theirs.trials]
    assert min(one.value for one in ours.trials) < 0.01


def plant(study, content):
    """Add a trial with a state of somebody else's, as whoever writes to the study can."""
    trial = optuna.trial.create_trial(
        params={"a": 0.1, "b": 0.1},
        distributions=SPACE,
        value=1.0,
        system_attrs={f"{STATE}:0": content.hex()},
    )
    study.add_trial(trial)


def objects():
    """A state whose arrays are of objects, which bytes could be taken for."""
    optimizer = CMA(mean=np.zeros(2), sigma=1.0)
    optimizer._mean = np.array([0, "a"], dtype=object)
    return pickle.dumps(optimizer)


def test_what_a_state_asks_for_is_refused_and_never_run(tmp_path):
    file = tmp_path / "made"
    study = optuna.create_study(sampler=made(PlainCmaEsSampler))
    go_on(study, 20)
    for content, said in [
        (pickle.dumps({"a": Planted(file)}), r"was tampered with: it asks for posix\.mknod"),
        (objects(), "is not what cellray wrote"),
        (pickle.dumps(5), "is none"),
        (pickle.dumps(CMA(mean=np.zeros(2), sigma=1.0))[:-20], "is damaged"),
    ]:
        plant(study, content)
        with pytest.raises(
            CellrayError, match=rf"the state of CMA-ES in the study's trial \d+ {said}"
        ):
            go_on(study, 1)
    assert not file.exists()
    plant(study, pickle.dumps({"a": Planted(file)}))
    study.sampler = made(CmaEsSampler)
    with pytest.raises(AttributeError):  # Optuna's own has made the file by then
        study.ask(SPACE)
    assert file.exists()
