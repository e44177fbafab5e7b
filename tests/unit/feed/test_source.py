"""How shares are spread over read tasks, and what those say."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from cellray.core.types import Rows
from cellray.feed.batches import Share, from_arrow
from cellray.feed.source import AtlasSource, shares_a_task

SAYING = """
import logging
from functools import partial
import numpy as np
import ray
from cellray.core import logs
from cellray.core.types import Rows
from cellray.feed.batches import Share
from cellray.feed.source import _dataset

def read(number, rows):
    logging.getLogger("cellray.atlas.storage").warning("reading share %d again", number)
    return Share(number, 0, rows)

rows = Rows(
    data=np.ones(1, np.uint8), indices=np.zeros(1, np.uint16), indptr=np.arange(2), n_genes=1,
    cells=np.arange(1),
)
logs.set_up(run="r1")
ray.init(num_cpus=1, object_store_memory=100_000_000, include_dashboard=False)
_dataset(partial(read, rows=rows), 3, share_bytes=7).materialize()
ray.shutdown()
"""


def read(number, rows):
    return Share(number, number % 3, rows)


@pytest.mark.parametrize("count", [1, 7, 100, 127, 128, 5_000, 32_000, 32_001, 800_000])
def test_tasks_are_few_and_hold_few_shares(count):
    size = shares_a_task(count)
    tasks = -(-count // size)
    assert min(count, 16) <= tasks <= 4_000
    assert size <= 8 or count > 32_000


@pytest.mark.parametrize("count", [1, 5, 33, 1_000])
def test_tasks_yield_every_share_once_and_in_order(count):
    rows = Rows(
        data=np.ones(1, np.uint8),
        indices=np.zeros(1, np.uint16),
        indptr=np.arange(2),
        n_genes=1,
        cells=np.arange(1),
    )
    source = AtlasSource(partial(read, rows=rows), count, share_bytes=7)
    tasks = source.get_read_tasks(2)
    assert len(tasks) == source.n_tasks
    tables = [list(task()) for task in tasks]
    assert [len(t) for t in tables] == [task.metadata.num_rows for task in tasks]
    shares = [from_arrow(table) for task in tables for table in task]
    assert [(share.slab, share.rank) for share in shares] == [(i, i % 3) for i in range(count)]
    assert source.estimate_inmemory_data_size() == 7 * count


def test_lines_of_read_tasks_know_their_run_and_job():
    told = {"CELLRAY_LOG": "json", "RAY_JOB_SUBMISSION_ID": "raysubmit_1", "RAY_ADDRESS": ""}
    with TemporaryDirectory() as scratch:  # tmp_path is too long for Ray's sockets
        done = subprocess.run(
            [sys.executable, "-c", SAYING],
            env={**os.environ, **told, "RAY_TMPDIR": scratch},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        files = Path(scratch).glob("ray/session_2*/logs/worker-*.err")
        said = [line for file in files for line in file.read_text().splitlines()]
    lines = [json.loads(line) for line in said if "reading share" in line]
    found = {line["message"]: line for line in lines}
    assert sorted(found) == [f"reading share {number} again" for number in range(3)]
    for line in found.values():
        assert (line["run"], line["job"], line["level"]) == ("r1", "raysubmit_1", "warning")
        assert line["logger"] == "cellray.atlas.storage"
