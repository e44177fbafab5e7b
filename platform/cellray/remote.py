"""Jobs of a cluster from Python: `cellray.submit` and `cellray.jobs`."""

import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import typer
import yaml

from cellray.answers_jobs import job_document, why
from cellray.cli import app, usage
from cellray.cli_verbs import quoted
from cellray.cluster.address import find_address
from cellray.cluster.follow import end, follow
from cellray.cluster.jobs import Jobs
from cellray.cluster.outcome import outcome
from cellray.core import logs
from cellray.core.errors import CellrayError
from cellray.submitting import Asked, find, send

FILES = ("recipe", "suite")
"""Options whose file may be given as what it holds."""


@dataclass(frozen=True)
class Job:
    """A job of a cluster; it goes on when Python ends.

    Attributes
    ----------
    id
        Its id.
    address
        The cluster's dashboard.
    """

    id: str
    address: str
    _cluster: Jobs = field(repr=False, compare=False)

    def status(self) -> str:
        """Say how it stands: ``pending``, ``running``, ``succeeded``, ``failed``, ``stopped``."""
        return str(self._cluster.info(self.id).status.value).lower()

    def logs(self) -> str:
        """Give all that it has written."""
        return self._cluster.logs(self.id)

    def wait(self, *, show: bool = True) -> Self:
        """Wait for its end; an interrupt leaves it alone.

        Parameters
        ----------
        show
            Whether what it writes, its progress among it, is shown meanwhile.

        Raises
        ------
        CellrayError
            It has failed, with its last lines; or it was stopped.
        """
        found = follow(self._cluster, self.id, sys.stdout.write if show else lambda text: None)
        document = job_document(found)
        if document["status"] != "succeeded":
            said = " ".join(why(document)) if document["status"] == "failed" else ""
            raise CellrayError(
                f"job {self.id} {document['status']}" + (f": {said}" if said else ""),
                f"see 'cellray jobs logs {self.id}'",
            )
        return self

    def models(self) -> list[str]:
        """Give the ``models:/NAME/VERSION`` that it has registered."""
        details = self._cluster.info(self.id)
        return [*outcome(details, self._cluster.address).models]

    def stop(self) -> str | None:
        """End it: a pre-training run writes a checkpoint first.

        Returns
        -------
        str or None
            The command that goes on with it.

        Raises
        ------
        CellrayError
            It has ended before.
        """
        return end(self._cluster, self._cluster.info(self.id))[1]


def submit(
    verb: str,
    *words: str,
    address: str | None = None,
    env: Mapping[str, str] | None = None,
    resources: Mapping[str, str | float] | None = None,
    job_name: str | None = None,
    pip: Sequence[str] = (),
    code: bool = True,
    **options: Any,  # noqa: ANN401 - the verb's own
) -> Job:
    """Run a verb as a job of a Ray cluster, as ``cellray submit`` does.

    Parameters
    ----------
    verb
        Such as ``pretrain``, ``sweep``, ``evaluate``, ``embed``, ``pipeline``.
    words
        The verb's arguments, such as ``models:/pbmc@champion``.
    address
        Ray's dashboard. Without it ``RAY_API_SERVER_ADDRESS`` or ``RAY_ADDRESS`` names the cluster,
        or it is the local one of this folder.
    env
        Variables of the job; no secrets.
    resources
        What the job's own process takes: ``{"CPU": 1, "memory": "4GiB"}``, or a node's label.
    job_name
        Readable part of the job's id.
    pip
        Packages that the nodes install.
    code
        Whether this cellray goes along; else that of the cluster's image runs.
    options
        The verb's options, ``num_workers=2`` for ``--num-workers 2``: True is a flag, a sequence
        repeats its option or is its ``a,b``, and a mapping is ``KEY=VALUE`` words. ``recipe`` and
        ``suite`` also take what their files hold, and ``recipe`` a `cellray.Recipe` or a
        `cellray.Sweep`; ``atlas`` takes a `cellray.Atlas`.

    Raises
    ------
    CellrayError
        Words that the verb refuses, a file that is not there, a secret, no cluster, or one that
        does not take the job.

    Examples
    --------
    >>> job = cellray.submit(
    ...     "pretrain", recipe="configs/pretrain/masked.yaml", atlas="s3://bucket/atlas",
    ...     name="plates", storage="s3://bucket/runs", set={"train.epochs": 20},
    ... )  # doctest: +SKIP
    >>> job.wait().models()  # doctest: +SKIP
    """
    with ExitStack() as kept:
        root: Any = typer.main.get_command(app)
        known = {one.opts[0]: one for one in find(root, verb).params}
        told = [w for name, value in options.items() for w in _words(name, value, known, kept)]
        asked = Asked(address, _pairs(env), _pairs(resources), job_name, pip, code)
        try:
            # An argument that begins with a dash is none of the options.
            cluster, document = send(root, verb, [*told, "--", *map(str, words)], asked, logs.say)
        except typer.TyperException as error:
            raise CellrayError(*usage(error)) from error
    return Job(str(document["id"]), cluster.url, cluster)


def jobs(address: str | None = None) -> list[Job]:
    """List a cluster's jobs, the newest first.

    Parameters
    ----------
    address
        As of `submit`.

    Raises
    ------
    CellrayError
        No cluster answers.
    """
    cluster = Jobs(find_address(address))
    return [Job(str(one.submission_id), cluster.url, cluster) for one in cluster.list()]


def _words(
    name: str,
    value: Any,  # noqa: ANN401 - of any kind
    known: Mapping[str, Any],
    kept: ExitStack,
) -> Iterator[str]:
    """Write a keyword as an option of the command line."""
    option = f"--{name.replace('_', '-')}"
    if value is None or value is False:
        return
    if value is True:
        yield option
    elif name in FILES and not isinstance(value, str | Path):
        yield f"{option}={_file(name, value, kept)}"
    elif isinstance(value, Mapping):
        yield from (f"{option}={key}={one}" for key, one in value.items())
    elif isinstance(value, list | tuple):
        repeated = getattr(known.get(option), "multiple", False)
        parts = value if repeated else [quoted(value)]
        yield from (f"{option}={one}" for one in parts)
    else:
        yield f"{option}={getattr(value, 'url', value)}"


def _file(name: str, value: Any, kept: ExitStack) -> Path:  # noqa: ANN401 - settings of any kind
    """Write settings into a file, for as long as it takes to ship it."""
    file = Path(kept.enter_context(tempfile.TemporaryDirectory(prefix="cellray-"))) / f"{name}.yaml"
    held = value.document() if hasattr(value, "document") else value
    file.write_text(value.dump() if hasattr(value, "dump") else yaml.safe_dump(dict(held)))
    return file


def _pairs(given: Mapping[str, Any] | None) -> list[str]:
    return [f"{key}={value}" for key, value in (given or {}).items()]
