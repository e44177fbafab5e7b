"""The sections of a sweep file: a recipe, a space around it, what is better, how to look for it."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from cellray.core.errors import CellrayError
from cellray.core.sections import Criterion, Section

Count = Annotated[int, Field(ge=1)]
Metrics = Annotated[
    tuple[Criterion, ...],
    BeforeValidator(lambda given: [given] if isinstance(given, str) else given),
    Field(min_length=1, max_length=2),
]


class Search(Section):
    """How the space is searched.

    Attributes
    ----------
    sampler
        ``tpe`` (tree-structured Parzen estimators, Bergstra et al. 2011), ``gp`` (Gaussian
        process), ``cmaes`` (Hansen and Ostermeier 2001; ranges only, the rest at random),
        ``random``, or ``nsga2`` (Deb et al. 2002, for two metrics).
    pruner
        ``asha`` (asynchronous successive halving, Li et al. 2020), ``median`` (a trial below the
        median of those before at the same share of its epochs ends), or ``none``.
    startup
        Random trials before the sampler, and trials that end before the median prunes.
    seed
        Of the sampler.
    storage
        Optuna's storage as an SQLAlchemy URL, for a server that a team shares; None is a file
        beside the runs.
    """

    sampler: Literal["tpe", "gp", "cmaes", "random", "nsga2"] = "tpe"
    pruner: Literal["asha", "median", "none"] = "none"
    startup: Annotated[int, Field(ge=0)] = 10
    seed: Annotated[int, Field(ge=0)] = 0
    storage: str | None = None


class Budget(Section):
    """When no more trials are begun; those that run then end in their own time.

    Attributes
    ----------
    trials
        Trials, those that failed or were pruned among them.
    hours
        Hours that the sweep has taken.
    cells
        Cells that all trials together have trained on, one that came twice counted twice.
    """

    trials: Count | None = 20
    hours: Annotated[float, Field(gt=0)] | None = None
    cells: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if self.trials is None and self.hours is None and self.cells is None:
            raise CellrayError(
                "a sweep without a budget never ends", "set budget.trials, .hours or .cells"
            )
        return self


class Settings(Section):
    """A sweep file.

    Attributes
    ----------
    recipe
        The recipe that all trials begin from. In a file ``base`` may name a recipe file, by its
        path from this one; the keys beside it take the place of its own, section by section.
    space
        What is searched (`cellray.tuning.space`).
    metric
        What is better, at the checkpoint that would be registered: the lowest ``validation_loss``
        or the highest ``knn_macro_f1`` (`cellray.train.probe`). Two are a Pareto front; the first
        chooses the checkpoint, and the model that is registered.
    first
        Points of the space that are tried first, as keys to values.
    concurrent
        Trials at a time at most; None is as many as Ray has room for.
    cpus_per_trial, gpus_per_trial
        What a trial of one worker asks of Ray: CPUs, and GPUs or a part of one; None is one GPU
        where Ray has some and the recipe takes it.
    retries
        Times that a trial is tried again, from its last checkpoint, after its process was lost.
    """

    recipe: dict[str, Any] = Field(default_factory=dict)
    space: dict[str, Any]
    metric: Metrics = ("validation_loss",)
    search: Search = Search()
    budget: Budget = Budget()
    first: tuple[dict[str, Any], ...] = ()
    concurrent: Count | None = None
    cpus_per_trial: Annotated[float, Field(gt=0)] = 1.0
    gpus_per_trial: Annotated[float, Field(ge=0)] | None = None
    retries: Annotated[int, Field(ge=0)] = 2
