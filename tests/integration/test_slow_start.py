"""A machine that is too busy for a node of Ray to start within the 30 s that Ray gives it."""

import subprocess
import sys
import threading
import time

import psutil
import pytest
from tests.integration.local_cluster import CELLRAY, ROOT, UP, answer, bare, cellray, marked, state

from cellray.atlas.simulate import Simulation, simulate_anndata

pytestmark = pytest.mark.slow

ALONE = """
import ray
from cellray.feed.session import ray_session
if __name__ == "__main__":
    with ray_session(2):
        print("nodes", len(ray.nodes()))
"""


def hold(found, stopped, times, until):
    """Stop the first raylets that are found: to Ray they are too slow."""
    while len(stopped) < times and time.monotonic() < until:
        for process in found():
            try:
                if process.pid not in stopped and process.name() == "raylet":
                    process.suspend()
                    stopped.append(process.pid)
                    break
            except psutil.Error:
                continue
        time.sleep(0.02)


def family(pid):
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def started(folder, *command):
    return subprocess.Popen(
        [*map(str, command)],
        cwd=folder,
        env=bare(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def held(found, times):
    stopped = []
    thread = threading.Thread(target=hold, args=(found, stopped, times, time.monotonic() + 100))
    thread.start()
    return thread, stopped


def test_a_node_of_a_local_cluster_is_started_again(tmp_path):
    def raylets():
        try:
            known = state(tmp_path)
        except (OSError, ValueError):
            return []
        sign = f"{known['scratch']}/w1/"
        return [p for p in marked(known["mark"]) if sign in " ".join(p.cmdline())]

    thread, stopped = held(raylets, 1)
    try:
        told = cellray(tmp_path, *UP, "--workers", "1", "--no-s3", "--json")
        thread.join()
        assert told.returncode == 0, told.stdout + told.stderr
        assert len(stopped) == 1
        assert not psutil.pid_exists(stopped[0])
        status = answer(tmp_path, "cluster", "status")
        assert (status["complete"], status["nodes"]) == (True, 2)
        names = [one["name"] for one in status["processes"]]
        assert sorted(names) == ["head", "mlflow", "worker-1"]
        mark = state(tmp_path)["mark"]
    finally:
        cellray(tmp_path, "cluster", "down")
    assert marked(mark) == []


def test_a_ray_of_ones_own_is_started_once_more(tmp_path):
    (tmp_path / "alone.py").write_text(ALONE)
    process = started(tmp_path, sys.executable, "alone.py")
    thread, stopped = held(lambda: family(process.pid), 1)
    out, err = process.communicate(timeout=300)
    thread.join()
    assert len(stopped) == 1
    assert process.returncode == 0, out + err
    assert "nodes 1" in out
    assert "trying once more" in err
    for pid in stopped:
        assert not psutil.pid_exists(pid)


def test_a_verb_says_it_in_one_line(tmp_path):
    simulate_anndata(Simulation(n_cells=400, n_genes=120, seed=2)).write_h5ad(tmp_path / "a.h5ad")
    answer(tmp_path, "ingest", "a.h5ad", "--out", "a.zarr")
    words = [
        "pretrain",
        "--recipe",
        ROOT / "configs" / "smoke.yaml",
        "--atlas",
        "a.zarr",
        "--name",
        "a",
    ]
    process = started(tmp_path, *CELLRAY, *words)
    thread, _ = held(lambda: family(process.pid), 2)
    out, err = process.communicate(timeout=300)
    thread.join()
    assert process.returncode == 2, out + err
    assert "Traceback" not in out + err
    assert "this machine is too busy: Ray did not start" in err
    assert "try again when less runs" in err
