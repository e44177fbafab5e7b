"""Adversarial objectives: a generator with an inference network, and a batch adversary.

Shape suffixes: B cells, G genes, D embedding.
"""

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from cellray.core.bits import normal, uniform
from cellray.core.cells import Cells
from cellray.core.errors import CellrayError
from cellray.core.ranks import global_mean
from cellray.core.sparse import dense
from cellray.nets.decoders import Decoder
from cellray.nets.encoder import Encoder
from cellray.nets.heads import projector
from cellray.nets.mlp import Width
from cellray.objectives.objective import Objective, Views
from cellray.objectives.redundancy import Weight


class BiGAN(Objective):
    """A critic cannot tell (cell, its embedding) from (generated cell, its code).

    The pairs are those of BiGAN (Donahue et al. 2017), the loss that of WGAN-GP (Gulrajani et al.
    2017): at the optimum the encoder inverts the generator. Critic, generator and encoder take
    one step each at every training step: the critic's loss is computed on pairs without
    gradients, the others' by a critic whose parameters get none. FSDP2 cannot shard it: the
    penalty differentiates twice.

    Beside ``loss``, the sum of both, it gives ``critic_loss``, ``penalty`` and ``distance``, the
    critic's estimate of the Wasserstein distance of the two kinds of pairs.

    Parameters
    ----------
    encoder
        What is trained.
    generator
        Units of the generator's hidden layers.
    critic
        Units of the critic's hidden layers.
    penalty
        Weight of the gradient penalty.
    """

    shardable = False

    def __init__(
        self,
        encoder: Encoder,
        *,
        generator: tuple[Width, ...] = (256, 512),
        critic: Annotated[tuple[Width, ...], Field(min_length=1)] = (512, 256),
        penalty: Weight = 10.0,
    ) -> None:
        super().__init__()
        self.penalty = penalty
        self.generator = Decoder(
            encoder.dim, generator, encoder.n_genes, n_batches=encoder.n_batches, dropout=0.0
        )
        self.critic = projector(encoder.n_genes + encoder.dim, (*critic, 1))
        self.critic[-1] = nn.Linear(critic[-1], 1, bias=False)  # it would cancel in the loss

    def forward(self, encoder: Encoder, views: Views, cells: Cells) -> dict[str, Tensor]:
        """Compute both losses."""
        view_BG, _ = views[0]
        real = torch.cat([dense(view_BG), encoder(view_BG, cells).float()], dim=1)
        code_BD = normal(cells.key_B, encoder.dim)
        fake = torch.cat([F.softplus(self.generator(code_BD, cells).float()), code_BD], dim=1)
        with torch.autocast(real.device.type, enabled=False):
            gap = self._gap(self.critic, real.detach(), fake.detach())
            penalty = self._penalty(real.detach(), fake.detach(), cells.key_B)
            critic_loss = self.penalty * penalty - gap
            frozen = {name: p.detach() for name, p in self.critic.named_parameters()}
            loss = self._gap(lambda x: functional_call(self.critic, frozen, (x,)), real, fake)
        return {
            "loss": critic_loss + loss,
            "critic_loss": critic_loss.detach(),
            "penalty": penalty.detach(),
            "distance": gap.detach(),
        }

    @staticmethod
    def _gap(critic: Any, real: Tensor, fake: Tensor) -> Tensor:  # noqa: ANN401 - a call
        gap: Tensor = critic(real).mean() - critic(fake).mean()
        return gap

    def _penalty(self, real: Tensor, fake: Tensor, key_B: Tensor) -> Tensor:
        """Give the mean squared distance of the critic's gradient norm from 1, between pairs."""
        share_B1 = uniform(key_B, 1, stream=2)
        between = (share_B1 * real + (1 - share_B1) * fake).requires_grad_()
        with torch.enable_grad():
            score = self.critic(between).sum()
            (slope,) = torch.autograd.grad(score, between, create_graph=True)
        # The root's own gradient is infinite at 0.
        return ((slope.square().sum(dim=1) + 1e-12).sqrt() - 1).square().mean()


class BatchAdversary(Objective):
    """A classifier of batches whose gradient the encoder gets with the opposite sign.

    Gradient reversal (Ganin et al. 2016). It is a part of a sum: alone it teaches nothing.

    Beside ``loss`` it gives ``batch_accuracy``.

    Parameters
    ----------
    encoder
        What is trained.
    widths
        Units of the classifier's hidden layers.
    strength
        Factor of the reversed gradient.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        widths: tuple[Width, ...] = (64,),
        strength: Weight = 1.0,
    ) -> None:
        super().__init__()
        if encoder.n_batches < 2:
            raise CellrayError(
                "objective 'batch_adversary' tells batches apart, and there are "
                f"{encoder.n_batches}",
                "set data.batch_key to an obs column of two or more batches",
            )
        self.strength = strength
        self.classifier = projector(encoder.dim, (*widths, encoder.n_batches))

    def forward(self, encoder: Encoder, views: Views, cells: Cells) -> dict[str, Tensor]:
        """Compute the classifier's loss; cells of unknown batch do not count."""
        z_BD = encoder(views[0][0], cells)
        reversed_BD: Tensor = _Reverse.apply(z_BD, self.strength)  # type: ignore[no-untyped-call]
        logits = self.classifier(reversed_BD).float()
        known_B = cells.batch_B >= 0
        wanted_B = cells.batch_B.clamp(min=0)
        losses_B = F.cross_entropy(logits, wanted_B, reduction="none") * known_B
        hits = ((logits.argmax(dim=1) == wanted_B) & known_B).sum()
        count = known_B.sum(dtype=torch.float32)
        return {
            "loss": global_mean(losses_B.sum(), count),
            "batch_accuracy": hits / count.clamp(min=1),
        }


class _Reverse(torch.autograd.Function):
    """The identity, whose gradient is turned round."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:  # noqa: ANN401 - torch's context
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401 - torch's
        return -ctx.strength * grads[0], None
