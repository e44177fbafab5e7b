"""Masked values with cell vector, on gene tokens (Qi et al. 2025).

Shape suffixes: B cells, G genes, S tokens, D embedding, E token.
"""

from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from cellray.core.cells import Cells
from cellray.core.errors import CellrayError
from cellray.core.ranks import global_mean
from cellray.nets.encoder import Encoder
from cellray.nets.mlp import Width, selu_layers
from cellray.nets.tokens import TokenEncoder
from cellray.objectives.objective import Objective, Views


class MVC(Objective):
    """Hidden values are predicted twice: from their tokens, and from the whole cell.

    A token whose value a view hid keeps its gene and gets the value -1. Its value is then
    predicted by a decoder on the token, and by the dot product of the cell's embedding with a
    query that a network makes of the gene's embedding, without gradients into that embedding.

    Beside ``loss``, the sum of both, it gives ``token_loss``, ``cell_loss`` and
    ``target_fraction``, of tokens.

    Parameters
    ----------
    encoder
        What is trained; one over gene tokens.
    width
        Units of the hidden layers of decoder and query network.
    """

    needs_target = True
    needs_tokens = True

    def __init__(self, encoder: Encoder, *, width: Width = 256) -> None:
        super().__init__()
        if not isinstance(encoder, TokenEncoder):
            raise CellrayError(
                "objective 'mvc' works on gene tokens, which the encoder does not have",
                "set encoder.name to transformer",
            )
        self.decoder = nn.Sequential(*selu_layers((encoder.token_dim, width, width, 1)))
        self.query = nn.Sequential(*selu_layers((encoder.token_dim, width, encoder.dim)))

    def forward(self, encoder: Encoder, views: Views, cells: Cells) -> dict[str, Tensor]:
        """Compute both losses."""
        _, target_BG = views[0]
        assert target_BG is not None, "the learner refuses views that hide nothing"
        tokens = cast("TokenEncoder", encoder).tokens(cells.x_BG, cells, hidden_BG=target_BG)
        wanted_BS = tokens.hidden_BS
        from_token_BS = self.decoder(tokens.states_BSE).squeeze(2).float()
        query_BSD = self.query(tokens.genes_BSE.detach())
        from_cell_BS = (query_BSD @ tokens.z_BD[:, :, None]).squeeze(2).float()
        from_cell_BS = from_cell_BS * encoder.dim**-0.5  # begins at about 1, whatever the width
        count = wanted_BS.sum(dtype=from_cell_BS.dtype)
        parts = {}
        for name, found_BS in (("token_loss", from_token_BS), ("cell_loss", from_cell_BS)):
            error_BS = F.mse_loss(found_BS, tokens.values_BS, reduction="none") * wanted_BS
            parts[name] = global_mean(error_BS.sum(), count)
        return {
            "loss": parts["token_loss"] + parts["cell_loss"],
            "target_fraction": count / tokens.kept_BS.sum().clamp(min=1),
        } | {name: value.detach() for name, value in parts.items()}
