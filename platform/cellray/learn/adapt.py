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
from cellray.core.sections import Init
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
            if init.lora_rank > min(layer.weight.shape):
                raise CellrayError(
                    f"init.lora_rank {init.lora_rank} is above {min(layer.weight.shape)}, the "
                    "width of a layer",
                    "4 to 16 are usual",
                )
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


Names = tuple[Sequence[str], Sequence[str]]
"""Of a model's genes and of its batches: what its weights belong to."""


def adopt(
    module: nn.Module,
    names: Names,
    source: nn.Module,
    source_names: Names,
    *,
    axes: dict[str, tuple[tuple[int, int], ...]],
) -> Overlap:
    """Copy the weights of another model into one, by name where they belong to genes or batches.

    Parameters
    ----------
    module, names
        What gets the weights, and the names of its genes and batches.
    source, source_names
        What gives them.
    axes
        Which dimensions of a weight count genes (0) or batches (1), by its name: pairs of
        dimension and which, from `named_axes`.

    Raises
    ------
    CellrayError
        No gene in common, or no weight of equal name and shape.
    """
    matches = [_match(*pair) for pair in zip(names, source_names, strict=True)]
    n_known = len(matches[0][0])
    if not n_known:
        raise CellrayError(
            f"the model to start from has none of the atlas's genes; its first is "
            f"'{source_names[0][0]}', the atlas's '{names[0][0]}'",
            "start from a model of the same kind of gene names",
        )
    given, taken, fresh = plain_state(source), [], []
    with torch.no_grad():
        for name, mine in module.state_dict(keep_vars=True).items():
            plain = _plain(name)
            belongs = axes.get(plain, ())
            there = list(mine.shape)
            for axis, which in belongs:
                there[axis] = len(source_names[which])
            if plain not in given or list(given[plain].shape) != there:
                fresh.append(plain)
                continue
            value = mine.detach().clone()
            _copy(value, given[plain], [(axis, *matches[which]) for axis, which in belongs])
            mine.copy_(value)
            taken.append(plain)
    if not taken:
        raise CellrayError(
            "no weight of the model to start from fits", "set encoder to that model's settings"
        )
    return Overlap(n_known, len(names[0]), tuple(taken), tuple(fresh))


def named_axes(
    build: Callable[[int, int], nn.Module], n_batches: int
) -> dict[str, tuple[tuple[int, int], ...]]:
    """Find which dimensions of a module's weights count genes, and which batches.

    It is built, without memory, for other numbers of them: the dimensions that differ are those.

    Parameters
    ----------
    build
        Makes the module for a number of genes and a number of batches.
    n_batches
        Batches of the model; without any, nothing belongs to them.
    """
    sizes = [(1000, n_batches), (1001, n_batches)]
    sizes += [(1000, n_batches + 1)] if n_batches else []
    with torch.device("meta"):
        one, *others = (plain_state(build(*size)) for size in sizes)
    return {
        name: tuple(
            (axis, which)
            for which, other in enumerate(others)
            for axis, (a, b) in enumerate(zip(w.shape, other[name].shape, strict=True))
            if a != b
        )
        for name, w in one.items()
    }


def _match(names: Sequence[str], others: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Give the places of names that both have, in the one and in the other."""
    places = torch.from_numpy(pd.Index(list(others)).get_indexer(pd.Index(list(names))))
    known = (places >= 0).nonzero().squeeze(1)
    return known, places[known]


def plain_state(module: nn.Module) -> State:
    """Give the weights that a module uses, low-rank updates added to what they update."""
    state = {name: w for name, w in module.state_dict().items() if PARAMETRIZED not in name}
    for name, part in module.named_modules():
        if parametrize.is_parametrized(part, "weight"):
            state[f"{name}.weight"] = part.weight.detach()
    return state


def _plain(name: str) -> str:
    return name.replace(f"{PARAMETRIZED}weight.original", "weight")


def _copy(mine: Tensor, its: Tensor, axes: Sequence[tuple[int, Tensor, Tensor]]) -> None:
    """Write the rows or columns that both have; the others stay as they are."""
    if not mine.ndim:  # a counter
        mine.copy_(its)
        return
    to: list[Any] = [torch.arange(n) for n in mine.shape]
    of: list[Any] = [torch.arange(n) for n in its.shape]
    for axis, known, theirs in axes:
        to[axis], of[axis] = known, theirs
    mine[torch.meshgrid(*to, indexing="ij")] = its[torch.meshgrid(*of, indexing="ij")]
