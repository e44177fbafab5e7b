"""A Ray session: the cluster that RAY_ADDRESS names, or a small one in this process."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache

import psutil
import ray

from cellray.core.errors import CellrayError
from cellray.core.secrets import first_line

logger = logging.getLogger(__name__)

# What Ray says at every start, though nothing is wrong. Its other warnings stay.
_CHATTER = {
    "ray.data._internal.progress": "Progress bars disabled",
    "ray.tune.analysis.experiment_analysis": "Failed to fetch metrics",
    "ray._private.authentication.authentication_token_setup": "Token authentication is enabled",
}

TRIES = 2
TOO_SLOW = "node timed out during startup"  # Ray gives it 30 s, which nobody can set

MIN_CPUS = 2  # one for a train worker's fraction, one for the reads beside it
OBJECT_STORE = 768 << 20  # its pages count as resident in every worker that reads them
KNOCK_SECONDS = 5


@contextmanager
def ray_session(num_cpus: int | None = None, *, dashboard: bool = False) -> Iterator[None]:
    """Connect to Ray for as long as the block runs; a session that is already there is kept.

    Parameters
    ----------
    num_cpus
        CPUs of an in-process Ray; None takes the machine's, two at least.
    dashboard
        Whether an in-process Ray serves its dashboard and State API.

    Raises
    ------
    CellrayError
        ``RAY_ADDRESS`` names a cluster that does not answer or refuses the token; this machine is
        too busy for a Ray of its own.
    """
    if ray.is_initialized():
        yield
        return
    _hush()
    terminate = signal.getsignal(signal.SIGTERM)
    address = os.environ.get("RAY_ADDRESS")
    try:
        if address and address != "local":
            _knock(address)
            ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
        else:
            _start(num_cpus or max(MIN_CPUS, os.cpu_count() or MIN_CPUS), dashboard=dashboard)
    except (OSError, RuntimeError, ValueError) as error:
        raise CellrayError(
            f"cannot reach Ray at {address or 'this machine'}: {first_line(error)}",
            "check RAY_ADDRESS and RAY_AUTH_TOKEN, or unset RAY_ADDRESS to run in this process",
        ) from error
    if callable(terminate) and threading.current_thread() is threading.main_thread():
        # Ray's own handler sets an alarm that aborts the process three seconds later.
        signal.signal(signal.SIGTERM, terminate)
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    try:
        yield
    finally:
        ray.shutdown()


def _start(num_cpus: int, *, dashboard: bool) -> None:
    """Start a Ray of this process, and once more where a busy machine was too slow for it."""
    before = _children()
    for left in reversed(range(TRIES)):
        try:
            ray.init(
                address="local",
                num_cpus=num_cpus,
                object_store_memory=OBJECT_STORE,
                include_dashboard=dashboard,
                log_to_driver=False,
                logging_level=logging.WARNING,
            )
        except Exception as error:  # Ray's has no type of its own
            if TOO_SLOW not in str(error):
                raise
            for process in _children() - before:  # they would run on beside the next ones
                with suppress(psutil.Error):
                    process.kill()
            if not left:
                raise CellrayError(
                    "this machine is too busy: Ray did not start within its 30 s",
                    "try again when less runs, or join a cluster with RAY_ADDRESS",
                ) from error
            logger.warning("Ray did not start within its 30 s; trying once more")
        else:
            return


def _children() -> set[psutil.Process]:
    return {*psutil.Process().children(recursive=True)}


def _knock(address: str) -> None:
    """Open a connection to ``HOST:PORT`` and close it: Ray itself would try for minutes."""
    if address.startswith("ray://"):
        raise CellrayError(
            f"RAY_ADDRESS is {address}: Ray's client does not carry Ray Train's callbacks",
            "submit a job with 'ray job submit', or run on a node of the cluster",
        )
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=KNOCK_SECONDS).close()


@cache
def _hush() -> None:
    """Drop Ray's chatter, once a process."""

    def unlike(words: str) -> Callable[[logging.LogRecord], bool]:
        return lambda record: words not in record.getMessage()

    for name, words in _CHATTER.items():
        logging.getLogger(name).addFilter(unlike(words))
