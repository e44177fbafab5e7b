"""The table of objectives; an entry called with (encoder_dim, n_genes) and its settings is one."""

from cellray.objectives.masked import Masked
from cellray.objectives.objective import Objective
from cellray.objectives.simclr import SimCLR

OBJECTIVES: dict[str, type[Objective]] = {
    "masked": Masked,
    "simclr": SimCLR,
}
