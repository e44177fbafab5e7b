"""Keys that are in a profile's file only open atlases, checkpoints and what doctor asks."""

import json

import numpy as np
import pytest
import ray

from cellray import doctor_services
from cellray.atlas.simulate import Simulation, simulate_anndata
from cellray.atlas.store import Atlas
from cellray.cli import main
from cellray.core.errors import CellrayError
from cellray.core.types import Span
from cellray.train.storage import file_system

KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL")
KEYS += ("AWS_REGION", "AWS_DEFAULT_REGION")


@pytest.fixture
def profile(s3, tmp_path, monkeypatch):
    """A profile 'lab' with the keys, the endpoint and the region, and nothing in the environment.

    Gives the variables that name it.
    """
    given = {name: s3.env[name] for name in KEYS if name in s3.env}
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "credentials").write_text(
        f"[lab]\naws_access_key_id = {given['AWS_ACCESS_KEY_ID']}\n"
        f"aws_secret_access_key = {given['AWS_SECRET_ACCESS_KEY']}\n"
        "[default]\naws_access_key_id = nobody\naws_secret_access_key = none\n"
    )
    (tmp_path / "config").write_text(
        f"[profile lab]\nregion = us-east-1\nendpoint_url = {given['AWS_ENDPOINT_URL']}\n"
    )
    named = {
        "AWS_PROFILE": "lab",
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials"),
        "AWS_CONFIG_FILE": str(tmp_path / "config"),
    }
    for name, value in named.items():
        monkeypatch.setenv(name, value)
    return named


@pytest.fixture
def url(s3):
    return f"s3://{s3.bucket()}/path"


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "cells.h5ad"
    simulate_anndata(Simulation(n_cells=300, n_genes=50, seed=3)).write_h5ad(path)
    return path


@ray.remote(num_cpus=0)
def first_cells(url):
    return Atlas.open(url).read(Span(0, 5)).cells


def test_an_atlas_is_written_and_read_by_a_profile(
    profile, url, source, tmp_path, monkeypatch, capfd, ray_local
):
    monkeypatch.chdir(tmp_path)
    assert main(["ingest", str(source), "--out", url, "--json"]) == 0
    capfd.readouterr()
    assert main(["inspect", url, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["cells"] == 300
    # A node finds the profile itself; what travels to it are no keys.
    env = {"runtime_env": {"env_vars": {**dict.fromkeys(KEYS, ""), **profile}}}
    there = ray.get(first_cells.options(**env).remote(url))
    np.testing.assert_array_equal(there, Atlas.open(url).read(Span(0, 5)).cells)


def test_checkpoints_go_where_the_profile_says(profile, url):
    system, path = file_system(url)
    with system.open_output_stream(f"{path}/checkpoint") as file:
        file.write(b"weights")
    with system.open_input_stream(f"{path}/checkpoint") as file:
        assert file.read() == b"weights"


def test_doctor_names_the_profile_and_says_what_ingest_would_meet(profile, url, monkeypatch):
    found = doctor_services.s3_credentials()
    assert found.state == "ok", found
    assert found.found.startswith("credentials of the AWS profile 'lab'; http")
    assert doctor_services.s3_round_trip(url).state == "ok"
    monkeypatch.setenv("AWS_PROFILE", "lb")
    for wrong in (doctor_services.s3_credentials(), doctor_services.s3_round_trip(url)):
        assert wrong.state == "fail"
        assert wrong.found == "AWS_PROFILE is 'lb', and no profile"
        assert wrong.mend == "did you mean 'lab'?"


def test_the_environment_comes_before_a_profile(profile, url, s3, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "default")  # whose keys open nothing
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.env["AWS_ENDPOINT_URL"])
    with pytest.raises(CellrayError, match="refuses these credentials"):
        Atlas.open(url)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, s3.env[name])
    with pytest.raises(CellrayError, match="no atlas"):
        Atlas.open(url)


def test_a_profile_that_gives_no_credentials_is_named(profile, url, tmp_path, monkeypatch):
    (tmp_path / "config").write_text("[profile sso]\ncredential_process = false\n")
    monkeypatch.setenv("AWS_PROFILE", "sso")
    with pytest.raises(CellrayError, match="the AWS profile 'sso' gives no credentials"):
        Atlas.open(url)
