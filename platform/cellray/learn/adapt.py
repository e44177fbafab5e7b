"""Starting from another model: weights matched by name and gene, frozen parts, low-rank updates."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from cellray.core.errors import CellrayError
from cellray.core.recipe import Init
from cellray.nets.encoder import Encoder

State = dict[str, Tensor]

PARAMETRIZED = "parametrizations."
"""Before the names of what torch computes a weight from."""


class LowRank(nn.Module):
    """A weight plus a learnt product of two thin matrices (LoRA, Hu et al. 2022).

    Parameters
    ----------
    weight
        Shape (out, in); it is frozen by `adapt`.
    rank
        Columns of the one matrix and rows of the other.
    alpha
        The product is scaled by ``alpha / rank``.
    """

    def __init__(self, weight: Tensor, *, rank: int, alpha: float) -> None:
        super().__init__()
        n_out, n_in = weight.shape
        self.scale = alpha / rank
        self.down = nn.Parameter(torch.randn(rank, n_in) * n_in**-0.5)
        self.up = nn.Parameter(torch.zeros(n_out, rank))  # so that nothing is changed at first

    def forward(self, weight: Tensor) -> Tensor:
        """Give the weight that the layer uses."""
        return weight + self.scale * (self.up @ self.down)


def adapt(encoder: Encoder, init: Init) -> None:
    """Freeze parts of an encoder and give its linear layers low-rank updates, as a recipe says.

    Raises
    ------
    CellrayError
        A pattern that is none or that fits no parameter.
    """
    names = [name for name, _ in encoder.named_parameters()]
    chosen = frozen_names(encoder, init.freeze)
    if init.freeze not in {"none", "all", "shallow"} and not chosen:
        raise CellrayError(
            f"init.freeze '{init.freeze}' fits no parameter of the encoder",
            f"give a regular expression over names like {', '.join(names[:3])}",
        )
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_(name not in chosen)
    if init.lora_rank:
        for layer in [m for m in encoder.modules() if isinstance(m, nn.Linear)]:
            layer.weight.requires_grad = False
            update = LowRank(layer.weight, rank=init.lora_rank, alpha=init.lora_alpha)
            parametrize.register_parametrization(layer, "weight", update)


def frozen_names(encoder: Encoder, freeze: str) -> set[str]:
    """Name the parameters that `freeze` freezes.

    Parameters
    ----------
    encoder
        Its parameters are named.
    freeze
        ``none``; ``all``; ``shallow``, which leaves the last block that has parameters; or a
        regular expression, anywhere in a name.
    """
    names = {name for name, _ in encoder.named_parameters()}
    if freeze == "none":
        return set()
    if freeze == "all":
        return names
    if freeze == "shallow":
        numbers = [n for n, block in enumerate(encoder.blocks) if list(block.parameters())]
        return {name for name in names if not name.startswith(f"blocks.{numbers[-1]}.")}
    try:
        return {name for name in names if re.search(freeze, name)}
    except re.error as error:
        raise CellrayError(
            f"init.freeze '{freeze}' is no regular expression: {error}",
            "give none, all, shallow, or a regular expression",
        ) from error


@dataclass(frozen=True)
class Overlap:
    """What of another model was taken over.

    Attributes
    ----------
    genes, of
        Genes that both models have, and genes of the new one.
    tensors
        Names of the weights that were taken over.
    fresh
        Names of those that begin anew.
    """

    genes: int
    of: int
    tensors: tuple[str, ...]
    fresh: tuple[str, ...]


def adopt(
    module: nn.Module,
    genes: Sequence[str],
    source: nn.Module,
    source_genes: Sequence[str],
    *,
    axes: dict[str, tuple[int, ...]],
) -> Overlap:
    """Copy the weights of another model into one, gene by gene where they belong to genes.

    Parameters
    ----------
    module, genes
        What gets the weights, and the names of its genes.
    source, source_genes
        What gives them.
    axes
        Which dimensions of a weight count genes, by its name, from `gene_axes`.

    Raises
    ------
    CellrayError
        No gene in common, or no weight of equal name and shape.
    """
    places = pd.Index(list(source_genes)).get_indexer(pd.Index(list(genes)))
    known = torch.from_numpy(places >= 0).nonzero().squeeze(1)
    if not len(known):
        raise CellrayError(
            f"the model to start from has none of the atlas's genes; its first is "
            f"'{source_genes[0]}', the atlas's '{genes[0]}'",
            "start from a model of the same kind of gene names",
        )
    theirs = torch.from_numpy(places)[known]
    given, taken, fresh = plain_state(source), [], []
    with torch.no_grad():
        for name, mine in module.state_dict(keep_vars=True).items():
            plain = _plain(name)
            if plain not in given:
                fresh.append(plain)
                continue
            its, here, there = given[plain], mine, list(mine.shape)
            for axis in axes.get(plain, ()):
                there[axis] = len(source_genes)
            if list(its.shape) != there:
                fresh.append(plain)
                continue
            value = here.detach().clone()
            _copy(value, its, known, theirs, axes.get(plain, ()))
            here.copy_(value)
            taken.append(plain)
    if not taken:
        raise CellrayError(
            "no weight of the model to start from fits", "set encoder to that model's settings"
        )
    return Overlap(len(known), len(genes), tuple(taken), tuple(fresh))


def gene_axes(build: Callable[[int], nn.Module]) -> dict[str, tuple[int, ...]]:
    """Find which dimensions of a module's weights count genes.

    It is built for two numbers of genes, without memory: the dimensions that differ are those.

    Parameters
    ----------
    build
        Makes the module for a number of genes.
    """
    with torch.device("meta"):
        one, two = (plain_state(build(n)) for n in (1000, 1001))
    return {
        name: tuple(
            axis for axis, (a, b) in enumerate(zip(w.shape, two[name].shape, strict=True)) if a != b
        )
        for name, w in one.items()
    }


def plain_state(module: nn.Module) -> State:
    """Give the weights that a module uses, low-rank updates added to what they update."""
    state = {name: w for name, w in module.state_dict().items() if PARAMETRIZED not in name}
    for name, part in module.named_modules():
        if parametrize.is_parametrized(part, "weight"):
            state[f"{name}.weight"] = part.weight.detach()
    return state


def _plain(name: str) -> str:
    return name.replace(f"{PARAMETRIZED}weight.original", "weight")


def _copy(mine: Tensor, its: Tensor, known: Tensor, theirs: Tensor, axes: tuple[int, ...]) -> None:
    """Write the rows or columns of the genes that both have; the others stay as they are."""
    if not axes:
        mine.copy_(its)
        return
    to: list[Any] = [slice(None)] * mine.ndim
    of: list[Any] = [slice(None)] * mine.ndim
    for place, axis in enumerate(axes):
        shape = [1] * len(axes)
        shape[place] = -1
        to[axis], of[axis] = known.view(shape), theirs.view(shape)
    mine[tuple(to)] = its[tuple(of)]
