"""An S3 server on loopback: OpenStack Swift, in a virtual environment of its own.

Swift stores, authenticates and refuses as an S3 server does, and pip installs it. It keeps its own
versions of what it needs, apart from cellray's.
"""

import getpass
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

from cellray.core.errors import CellrayError
from cellray.core.types import Progress

PINS = "swift-constraints.txt"
SIZE = "about 80 MB"
REGION = "us-east-1"
STORES = ("account", "container", "object")
OURS = ".cellray-s3"
"""File that says that an environment was begun here, so that it may be cleared."""
SETTLED = ".installed"
"""File that says that an environment was made to its end."""

_RINGS = """
import sys
from swift.common.ring import RingBuilder
for name, port in zip(("account", "container", "object"), sys.argv[1:]):
    ring = RingBuilder(part_power=4, replicas=1, min_part_hours=1)
    ring.add_dev({"region": 1, "zone": 1, "ip": "127.0.0.1", "port": int(port), "device": "d1",
                  "weight": 1, "meta": ""})
    ring.rebalance(seed=1)
    ring.get_ring().save(f"{name}.ring.gz")
"""

_HASHES = """
[swift-hash]
swift_hash_path_prefix = {salt}
swift_hash_path_suffix = {salt}
"""

_DEFAULT = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
swift_dir = {folder}
"""

_STORE = """
devices = {folder}/devices
mount_check = false
fallocate_reserve = 0
disable_fallocate = true
[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
"""

_PIPELINE = (
    *("catch_errors", "gatekeeper", "healthcheck", "cache", "listing_formats", "bulk", "s3api"),
    *("tempauth", "slo", "copy"),
)

# `memcache_servers` names a port where nothing listens: without a cache every request is looked
# up, which is what a single process wants.
_FRONT = """
[pipeline:main]
pipeline = {pipeline} proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
allow_account_management = true
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:1
[filter:s3api]
use = egg:swift#s3api
location = {region}
[filter:tempauth]
use = egg:swift#tempauth
user_{login} = {secret} .admin
"""


@dataclass(frozen=True)
class Login:
    """What an S3 client signs with.

    Attributes
    ----------
    key
        The access key: ``account:user``.
    secret
        The secret key.
    """

    key: str
    secret: str

    def env(self, endpoint: str) -> dict[str, str]:
        """Give the variables with which any AWS client reaches the server, and no other."""
        return {
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


def lay_out(
    folder: Path, environment: Path, ports: Mapping[str, int], login: Login, *, salt: str
) -> dict[str, list[str]]:
    """Write the server's configuration; objects that lie in the folder stay.

    Parameters
    ----------
    folder
        Where configuration and objects lie; the servers run in it.
    environment
        The virtual environment with Swift, by `find_environment` or `make_environment`.
    ports
        Ports on loopback for ``account``, ``container``, ``object`` and ``proxy``; the last is
        where S3 clients connect. The other three ask nobody who one is.
    login
        Who is let in.
    salt
        What objects' paths are hashed with: the same for as long as the objects lie there.

    Returns
    -------
    dict of str to list of str
        The command of each server, by name.
    """
    (folder / "devices" / "d1").mkdir(parents=True, exist_ok=True)
    _write(folder / "swift.conf", _HASHES.format(salt=salt))
    binaries = environment.absolute() / "bin"
    commands = {}
    for kind, port in ports.items():
        body = _FRONT if kind == "proxy" else _STORE
        text = (_DEFAULT + body).format(
            port=port,
            user=getpass.getuser(),
            folder=folder.absolute(),
            kind=kind,
            pipeline=" ".join(_PIPELINE),
            region=REGION,
            login=login.key.replace(":", "_"),
            secret=login.secret,
        )
        if kind == "proxy":
            bare = (name for name in _PIPELINE if f"[filter:{name}]" not in _FRONT)
            text += "".join(f"[filter:{name}]\nuse = egg:swift#{name}\n" for name in bare)
        _write(folder / f"{kind}.conf", text)
        commands[kind] = [str(binaries / f"swift-{kind}-server"), f"{kind}.conf"]
    rings = [str(binaries / "python"), "-c", _RINGS, *(str(ports[kind]) for kind in STORES)]
    subprocess.run(rings, cwd=folder, check=True, capture_output=True)
    return commands


def _write(file: Path, text: str) -> None:
    """Write what only this user may read: a key is in it."""
    file.touch(mode=0o600)
    file.write_text(text)


def find_environment(folder: Path) -> bool:
    """Say whether a virtual environment has Swift; one begun here, whether it was made whole."""
    whole = (folder / SETTLED).exists() or not (folder / OURS).exists()
    return whole and (folder / "bin" / "swift-proxy-server").exists()


def make_environment(
    folder: Path, say: Callable[[str], None], progress: Progress | None = None
) -> None:
    """Make a virtual environment and install Swift into it, in the versions of `PINS`.

    Raises
    ------
    CellrayError
        The folder holds something else, which is left as it is, or pip cannot install: without a
        network, for example.
    """
    folder = folder.resolve()
    if (folder / OURS).exists():
        shutil.rmtree(folder)
    elif folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise CellrayError(
            f"{folder} is not empty, and no environment of an S3 server",
            "name another with --s3-env",
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / OURS).touch()
    say(f"installing an S3 server (OpenStack Swift, {SIZE}) into {folder}, once")
    with as_file(files("cellray.cluster") / PINS) as pins:
        total = sum(1 for line in pins.read_text().splitlines() if "==" in line)
        try:
            deque(_lines([sys.executable, "-m", "venv", str(folder)]), maxlen=0)
            seen, python = 0, str(folder / "bin" / "python")
            pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--no-input"]
            for line in _lines([*pip, "-r", str(pins)]):
                seen += line.startswith("Collecting ")
                if progress is not None:
                    progress("packages", min(seen, total), total)
        except subprocess.CalledProcessError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise CellrayError(
                f"cannot install the S3 server: {error.output}",
                "see that pip reaches its package index, name an environment that has Swift with "
                "--s3-env, or leave the server out with --no-s3",
            ) from error
    (folder / SETTLED).touch()
    if progress is not None:
        progress("packages", total, total)


def _lines(command: list[str]) -> Iterator[str]:
    """Run a command and give what it prints, line by line; its last words go with its error."""
    last = ""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for line in process.stdout or ():
            last = line.strip() or last
            yield line
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, last)
