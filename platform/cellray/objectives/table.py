"""The table of objectives; an entry called with the encoder and its settings is one.

Shape suffixes: B cells, G genes.
"""

from typing import Annotated, Any, cast

from pydantic import Field
from torch import Tensor, nn

from cellray.core.cells import Cells
from cellray.core.errors import CellrayError
from cellray.core.parts import Part, build_part
from cellray.nets.encoder import Encoder
from cellray.objectives.adversarial import BatchAdversary, BiGAN
from cellray.objectives.byol import BYOL, SimSiam
from cellray.objectives.expression import ExpressionPrediction
from cellray.objectives.masked import Masked
from cellray.objectives.memory import NNCLR, MoCo
from cellray.objectives.mvc import MVC
from cellray.objectives.objective import Objective, Views
from cellray.objectives.redundancy import BarlowTwins, VICReg
from cellray.objectives.scmae import ScMAE
from cellray.objectives.simclr import SimCLR


class Weighted(Part):
    """An objective of a sum, and what its loss is multiplied by."""

    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0


class Sum(Objective):
    """A weighted sum of objectives on the same views of the same cells.

    Every view is embedded once, whatever part asks for it. Beside ``loss`` it gives what its
    parts do, under ``PART_``.

    Parameters
    ----------
    encoder
        What is trained.
    parts
        Objectives as a recipe names them, each with a ``weight``.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        parts: Annotated[tuple[Weighted, ...], Field(min_length=1)] = (
            Weighted(name="masked"),
            Weighted(name="simclr"),
        ),
    ) -> None:
        super().__init__()
        names = [part.name for part in parts]
        if "sum" in names or len(set(names)) < len(names):
            raise CellrayError(
                f"objective 'sum' of {', '.join(names)}", "name other objectives, each once"
            )
        self.weights = {part.name: part.weight for part in parts}
        self.parts = nn.ModuleDict(
            {part.name: build_part("part", OBJECTIVES, part, encoder) for part in parts}
        )
        made = [cast("Objective", part) for part in self.parts.values()]
        self.n_views = max(part.n_views for part in made)
        self.needs_target = any(part.needs_target for part in made)
        self.needs_tokens = any(part.needs_tokens for part in made)
        self.shardable = all(part.shardable for part in made)

    def forward(self, encoder: Encoder, views: Views, cells: Cells) -> dict[str, Tensor]:
        """Compute all losses and their sum."""
        once = cast("Encoder", _Once(encoder))
        found: dict[str, Tensor] = {}
        total: Tensor | float = 0.0
        for name, part in self.parts.items():
            for key, value in part(once, views, cells).items():
                if key == "loss":
                    total = total + self.weights[name] * value
                    value = value.detach()
                found[f"{name}_{key}"] = value
        return {"loss": cast("Tensor", total)} | found

    def begin(self, encoder: Encoder) -> None:
        """Let every part take note."""
        for part in self.parts.values():
            cast("Objective", part).begin(encoder)

    def after_step(self, encoder: Encoder, progress: float) -> None:
        """Let every part follow the encoder."""
        for part in self.parts.values():
            cast("Objective", part).after_step(encoder, progress)


class _Once:
    """An encoder that remembers the embeddings of this step's views."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._known: dict[int, tuple[Any, Tensor]] = {}

    def __call__(self, x_BG: Any, cells: Cells | None = None) -> Tensor:  # noqa: ANN401
        # What is kept with the embedding cannot be freed, so no other view gets its id.
        if id(x_BG) not in self._known:
            self._known[id(x_BG)] = (x_BG, self._encoder(x_BG, cells))
        return self._known[id(x_BG)][1]

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the encoder has
        return getattr(self._encoder, name)


OBJECTIVES: dict[str, type[Objective]] = {
    "barlow_twins": BarlowTwins,
    "batch_adversary": BatchAdversary,
    "bigan": BiGAN,
    "byol": BYOL,
    "expression_prediction": ExpressionPrediction,
    "masked": Masked,
    "moco": MoCo,
    "mvc": MVC,
    "nnclr": NNCLR,
    "scmae": ScMAE,
    "simclr": SimCLR,
    "simsiam": SimSiam,
    "sum": Sum,
    "vicreg": VICReg,
}
