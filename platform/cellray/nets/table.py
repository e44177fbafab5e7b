"""The table of encoders; an entry called with (n_genes, n_batches) and its settings is one."""

from cellray.nets.cnn import CNN
from cellray.nets.encoder import Encoder
from cellray.nets.mamba import Mamba
from cellray.nets.mixer import Mixer
from cellray.nets.mlp import MLP
from cellray.nets.transformer import Transformer

ENCODERS: dict[str, type[Encoder]] = {
    "cnn": CNN,
    "mamba": Mamba,
    "mixer": Mixer,
    "mlp": MLP,
    "transformer": Transformer,
}
