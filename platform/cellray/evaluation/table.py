"""The tasks by name."""

from cellray.evaluation.annotation import annotation
from cellray.evaluation.task import Task

TASKS: dict[str, Task] = {"annotation": annotation}
