"""`cellray cluster` as a user types it, in shells that end at once."""

import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.request import Request, urlopen

import boto3
import psutil

from cellray.cluster.processes import MARK

ROOT = Path(__file__).parents[2]
CELLRAY = [sys.executable, "-m", "cellray"]
UP = [
    *("cluster", "up", "--local", "--cpus", "2", "--object-store", "200"),
    *("--s3-env", ROOT / ".venv-s3"),
    *(f"--{name}-port=0" for name in ("ray", "dashboard", "mlflow", "s3")),
]
OTHERS = ("AWS_", "MLFLOW_", "RAY_", "PYTEST_CURRENT_TEST")


def bare():
    """This environment, without other clusters and stores."""
    return {name: value for name, value in os.environ.items() if not name.startswith(OTHERS)}


def cellray(folder, *words, env=None, timeout=400):
    """Run a verb in a folder, in a session of its own that ends with it."""
    return subprocess.run(
        [*CELLRAY, *map(str, words)],
        cwd=folder,
        env=bare() | (env or {}),
        capture_output=True,
        text=True,
        timeout=timeout,
        start_new_session=True,
    )


def answer(folder, *words, env=None, code=0):
    """Run a verb that is expected to end with a status, and give its document."""
    done = cellray(folder, *words, "--json", env=env)
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


def state(folder):
    return json.loads((folder / ".cellray" / "cluster" / "state.json").read_text())


def keys(env, prefix):
    """Give the keys in the cluster's bucket that begin so, with what tells their content."""
    client = boto3.client(
        "s3",
        endpoint_url=env["AWS_ENDPOINT_URL"],
        region_name=env["AWS_REGION"],
        aws_access_key_id=env["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=env["AWS_SECRET_ACCESS_KEY"],
    )
    found = client.list_objects_v2(Bucket="cellray", Prefix=prefix).get("Contents", [])
    client.close()
    return {one["Key"]: one["ETag"] for one in found}


def jobs_text(env):
    """What everyone who sees the cluster's jobs can read of them."""
    token = Path(env["RAY_AUTH_TOKEN_PATH"]).read_text()
    headers = {"Authorization": f"Bearer {token}"}
    with urlopen(Request(f"{env['RAY_API_SERVER_ADDRESS']}/api/jobs/", headers=headers)) as told:
        return told.read().decode()


def marked(mark):
    """The processes of a cluster, found by what they inherited and not by what is written."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == mark:
                found.append(process)
        except (psutil.Error, OSError):
            continue  # it has ended, or is not ours
    return found


def listening():
    """Every port on which something listens, with the addresses and processes that do."""
    return [one for one in psutil.net_connections("tcp") if one.status == psutil.CONN_LISTEN]
