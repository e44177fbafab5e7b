"""Self-supervised learning on single-cell atlases, on Ray.

The verbs of the command line are functions here, `ingest`, `pretrain`, `evaluate`, `embed` among
them. They load their modules on first use, so that ``import cellray`` pulls in neither torch nor
Ray.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_VERBS = {
    "Atlas": "cellray.atlas.store",
    "Recipe": "cellray.core.recipe",
    "Sweep": "cellray.tuning.settings",
    "append": "cellray.atlas.write",
    "embed": "cellray.evaluation.write",
    "evaluate": "cellray.evaluation.run",
    "ingest": "cellray.atlas.write",
    "jobs": "cellray.remote",
    "leaderboard": "cellray.evaluation.leaderboard",
    "models": "cellray.track.catalogue",
    "pretrain": "cellray.train.run",
    "promote": "cellray.track.promotion",
    "resolve": "cellray.track.models",
    "resume": "cellray.train.run",
    "resume_sweep": "cellray.tuning.run",
    "run_pipeline": "cellray.pipeline.run",
    "submit": "cellray.remote",
    "sweep": "cellray.tuning.run",
}

__all__ = [*_VERBS, "__version__"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - module attributes are of any type
    if name in _VERBS:
        return getattr(import_module(_VERBS[name]), name)
    msg = f"module 'cellray' has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return sorted(__all__)
