"""The tasks by name: those that cellray brings, and those that installed packages register."""

from importlib.metadata import EntryPoint, entry_points

from cellray.core.errors import CellrayError, suggest
from cellray.tasks.annotation import annotation
from cellray.tasks.clustering import clustering
from cellray.tasks.cross_modality import cross_modality
from cellray.tasks.drug_response import drug_response
from cellray.tasks.integration import integration
from cellray.tasks.mapping import mapping
from cellray.tasks.markers import markers
from cellray.tasks.perturbation import perturbation
from cellray.tasks.reconstruction import reconstruction
from cellray.tasks.robustness import robustness
from cellray.tasks.task import Task
from cellray.tasks.transfer import transfer

GROUP = "cellray.tasks"

TASKS: dict[str, Task] = {
    "annotation": Task(annotation, "Cell-type annotation", splits=True),
    "clustering": Task(clustering, "Clustering"),
    "integration": Task(integration, "Batch integration", needs=("label", "batch")),
    "cross_modality": Task(cross_modality, "Another modality", needs=("matrix",), splits=True),
    "transfer": Task(transfer, "Few labels", splits=True),
    "reconstruction": Task(reconstruction, "Reconstruction", needs=(), splits=True),
    "perturbation": Task(perturbation, "Perturbation", needs=("label", "control"), splits=True),
    "markers": Task(markers, "Marker recovery", splits=True),
    "mapping": Task(mapping, "Mapping to a reference", needs=("label", "reference")),
    "drug_response": Task(drug_response, "Drug response", needs=("label", "reference")),
    "robustness": Task(robustness, "Robustness", splits=True),
}


def find_task(name: str) -> Task:
    """Give a task by its name.

    A package registers its own by an entry point of the group ``cellray.tasks`` that names a
    `Task`; it cannot take the name of one of cellray's.

    Raises
    ------
    CellrayError
        No such task, or an entry point that does not give one.
    """
    if name in TASKS:
        return TASKS[name]
    registered = {point.name: point for point in entry_points(group=GROUP)}
    if name not in registered:
        raise CellrayError(f"unknown task '{name}'", suggest(name, {*TASKS, *registered}))
    return _load(registered[name])


def _load(point: EntryPoint) -> Task:
    try:
        task = point.load()
    except (ImportError, AttributeError) as error:
        raise CellrayError(
            f"task '{point.name}' cannot be loaded from {point.value}: {error}",
            "mend the package that registers it, or uninstall it",
        ) from error
    if not isinstance(task, Task):
        raise CellrayError(
            f"task '{point.name}' is a {type(task).__name__}, not a cellray.tasks.task.Task",
            "mend the package that registers it",
        )
    return task
