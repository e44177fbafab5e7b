"""The table of encoders; an entry called with the number of genes and its settings is one."""

from cellray.nets.encoder import Encoder
from cellray.nets.mlp import MLP

ENCODERS: dict[str, type[Encoder]] = {
    "mlp": MLP,
}
