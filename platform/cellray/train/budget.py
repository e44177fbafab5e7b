"""What a run will take, before it is launched: memory, steps, bytes, checkpoints, operations.

The plan's numbers are exact. Bytes to be read are estimated from a sample of slabs
(`cellray.atlas.forecast`), memory from the tensors of a traced step on cells with the atlas's mean
number of genes (`cellray.train.needs`), operations as if every gene were expressed
(`cellray.learn.cost`). What a compiler saves, what kernels and Ray hold inside, and what an
allocator wastes is not in them.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any

from cellray.atlas.forecast import SHARES_HELD, forecast
from cellray.atlas.store import Atlas
from cellray.core.recipe import Recipe
from cellray.learn.cost import flops_per_cell, state_bytes
from cellray.learn.learner import Learner
from cellray.train.needs import Memory, Needs
from cellray.train.setup import Setup


@dataclass(frozen=True)
class Budget:
    """What a run will take.

    Attributes
    ----------
    recipe, needs
        What follows is of this recipe; the memory of another can be asked of the needs.
    workers
        Fewest and most of them.
    parameters, trained
        Numbers of the learner, and those of them that are trained.
    memory
        Of a worker, when they are fewest; estimated.
    machine
        Bytes that one machine needs for the driver, Ray's object store and all workers.
    epoch_cells, steps_per_epoch, steps
        The plan's.
    read_epoch, read
        Compressed bytes that an epoch and the run read, without obs columns; estimated.
    decoded
        Bytes that the run's cells have in memory.
    checkpoint, checkpoints
        Bytes of a checkpoint, and how many are kept at the end.
    flops_per_cell, flops
        Floating-point operations of a cell's training step, and of the run; no validation.
    """

    recipe: Recipe
    needs: Needs
    workers: tuple[int, int]
    parameters: int
    trained: int
    memory: Memory
    machine: int
    epoch_cells: int
    steps_per_epoch: int
    steps: int
    read_epoch: int
    read: int
    decoded: int
    checkpoint: int
    checkpoints: int
    flops_per_cell: float
    flops: float

    def document(self) -> dict[str, Any]:
        """Give all numbers, as JSON has them."""
        shown = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "needs"}
        keys = ("strategy", "precision", "accumulate", "epochs")
        chosen = {key: getattr(self.recipe.train, key) for key in keys}
        shown["recipe"] = {"batch_size": self.recipe.data.batch_size} | chosen
        return shown | {"memory": asdict(self.memory), "gpu": self.needs.gpu}


def budget(recipe: Recipe, atlas: Atlas, setup: Setup, learner: Learner) -> Budget:
    """Say what a run will take; a few small steps are run to find out.

    Raises
    ------
    CellrayError
        Not even those steps fit into the memory.
    """
    plan, workers = setup.choice.plan, recipe.train.worlds
    found = forecast(atlas, setup.choice, world=workers[-1], matrices=recipe.data.matrices)
    slab = found["memory"]["slab"]
    labelled = 0 if setup.labelled is None else len(setup.labelled.cells)
    held_out = slab * (len(setup.validation_cells) + labelled) // plan.slab
    needs = Needs.of(
        recipe,
        learner,
        atlas,
        shared=SHARES_HELD * slab + held_out,
        each=found["memory"]["selection"],
    )
    state, per_cell = state_bytes(learner, recipe.optim), flops_per_cell(learner)
    return Budget(
        recipe=recipe,
        needs=needs,
        workers=(workers[0], workers[-1]),
        parameters=sum(p.numel() for p in learner.parameters()),
        trained=sum(p.numel() for p in learner.parameters() if p.requires_grad),
        memory=needs.memory(recipe, workers[0]),
        machine=needs.machine(recipe),
        epoch_cells=plan.steps_per_epoch * plan.batch_size,
        steps_per_epoch=plan.steps_per_epoch,
        steps=plan.steps,
        read_epoch=round(found["bytes"]["epoch"]),
        read=round(found["bytes"]["epoch"] * plan.epochs),
        decoded=slab * plan.slabs,
        checkpoint=state.parameters + state.buffers + state.moments,
        checkpoints=recipe.train.keep + 1,
        flops_per_cell=per_cell,
        flops=per_cell * plan.steps * plan.batch_size,
    )
