"""What a run was launched with, kept in the run itself, so that it can be resumed from its id."""

import os
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import lcm

import psutil
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from cellray.atlas.plan import Plan
from cellray.atlas.store import Atlas
from cellray.core.errors import CellrayError
from cellray.core.recipe import Recipe
from cellray.track import runs
from cellray.track.life import ALIVE, SILENT, Sign
from cellray.track.store import client, store_errors

FILE = "launch.json"
DRIVER = "cellray.driver"
"""Tag that says which process drives a run: host, process id, and when that process started."""

CHANGEABLE = ("optim.lr", "optim.clip")
FIXED = ("train.epochs",)


@dataclass(frozen=True)
class Launch:
    """What a run trains, and where.

    Attributes
    ----------
    recipe
        The recipe, with what the plan has filled in.
    atlas, atlas_digest
        The atlas's URL, and its state.
    name
        The registered model's name.
    storage
        Where checkpoints go; the run's own lie in a folder of its id.
    """

    recipe: Recipe
    atlas: str
    atlas_digest: str
    name: str
    storage: str

    def planned(self, plan: Plan) -> "Launch":
        """Give the launch with the plan's numbers written into the recipe.

        Left open they would follow from the number of workers, which may differ when the run is
        resumed.
        """
        numbers = [f"data.slab_batches={plan.slab_batches}", f"data.mix={plan.mix}"]
        return replace(self, recipe=self.recipe.with_(numbers))

    def store(self, run_id: str) -> None:
        """Store it as an artifact of the run."""
        document = asdict(self) | {"recipe": self.recipe.model_dump(mode="json")}
        runs.log_document(run_id, FILE, document)

    def open_atlas(self, run_id: str) -> Atlas:
        """Open the atlas, which must be as it was when the run began.

        Raises
        ------
        CellrayError
            It has changed, or is gone.
        """
        return open_unchanged(self.atlas, self.atlas_digest, run_id)

    def changed(self, changes: Sequence[str]) -> "Launch":
        """Give the launch with ``key=value`` changes of how a run is trained on, and not of what.

        Raises
        ------
        CellrayError
            A key that would make it another run.
        """
        for change in changes:
            key = change.partition("=")[0]
            allowed = key.startswith("train.") or key in CHANGEABLE
            if not allowed or key in FIXED:
                raise CellrayError(
                    f"{key} cannot change when a run is resumed: it would be another run",
                    "leave it out, or start a new run, from this one's model with init.model",
                )
        recipe = self.recipe.with_(list(changes))
        mix = recipe.data.mix or 1
        if mix % lcm(*recipe.train.worlds):
            fit = [count for count in range(1, mix + 1) if mix % count == 0]
            raise CellrayError(
                f"train.num_workers={recipe.train.num_workers} does not fit the plan that the run "
                "began with",
                f"set train.num_workers to {', '.join(map(str, fit[:-1]))} or {fit[-1]}"
                if len(fit) > 1
                else "set train.num_workers to 1",
            )
        return replace(self, recipe=recipe)


def open_unchanged(url: str, digest: str, run_id: str) -> Atlas:
    """Open an atlas, which must be as it was when a run began.

    Raises
    ------
    CellrayError
        It has changed, or is gone.
    """
    opened = Atlas.open(url)
    if opened.digest != digest:
        raise CellrayError(
            f"the atlas {url} has changed since run {run_id} began: its digest was {digest[:12]} "
            f"and is {opened.digest[:12]}",
            "start a new run on it, from another model with init.model",
        )
    return opened


@store_errors()
def find_launch(run_id: str) -> Launch:
    """Read what a run was launched with.

    Raises
    ------
    CellrayError
        No such run, one that did not train, that has finished, or that is still going on.
    """
    try:
        run = client().get_run(run_id)
    except MlflowException as error:
        if error.error_code not in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
            raise
        raise CellrayError(
            f"no run {run_id} in this tracking store",
            "take the id that 'cellray pretrain' printed; 'cellray ui' shows all runs",
        ) from error
    if run.info.status == "FINISHED":
        raise CellrayError(
            f"run {run_id} has finished", "start a new one, from its model with init.model"
        )
    refuse_driven(run, f"run {run_id}")
    return read_launch(run_id)


@store_errors()
def read_launch(run_id: str) -> Launch:
    """Read what a run was launched with, whatever has become of it.

    Raises
    ------
    CellrayError
        It did not train.
    """
    values = runs.read_document(run_id, FILE)
    if values is None:
        raise CellrayError(
            f"run {run_id} has no {FILE}: it is no pre-training run of cellray's, or ended before "
            "it began",
            "start a new run",
        )
    return Launch(**values | {"recipe": Recipe.of(values["recipe"])})


def refuse_driven(run: Run, what: str) -> None:
    """Refuse to go on with a run that somebody drives.

    On this machine its process is looked for. Another machine's cannot be: there the run's last
    sign of life is believed.

    Parameters
    ----------
    run
        As MLflow holds it.
    what
        Names it.

    Raises
    ------
    CellrayError
        Its driver is alive here, or has given a sign elsewhere not long ago.
    """
    if run.info.status != "RUNNING":
        return
    tags = run.data.tags
    if alive(tags.get(DRIVER, "")):
        raise CellrayError(
            f"{what} is still going on in this machine's process {tags[DRIVER].split()[1]}",
            "wait for it, or end that process first",
        )
    sign = Sign.read(tags.get(ALIVE, ""))
    if sign is None or sign.here or abs(sign.age) >= SILENT:
        return
    raise CellrayError(
        f"{what} is going on on {sign.host}: its last sign of life is {max(0.0, sign.age):.0f} s "
        f"old, of {sign.when:%Y-%m-%d %H:%M:%S} UTC",
        "wait for it, or stop it there ('cellray jobs stop' for a job); if it was lost, try again "
        f"{SILENT / 60:.0f} minutes after that sign",
    )


def driver() -> str:
    """Name this process for `DRIVER`."""
    process = psutil.Process()
    return f"{socket.gethostname()} {process.pid} {process.create_time():.2f}"


def alive(name: str) -> bool:
    """Say whether a process of this machine is the one that a tag names."""
    host, _, rest = name.partition(" ")
    pid, _, created = rest.partition(" ")
    if host != socket.gethostname() or not pid.isdigit() or int(pid) == os.getpid():
        return False
    try:
        return f"{psutil.Process(int(pid)).create_time():.2f}" == created
    except psutil.NoSuchProcess:
        return False
