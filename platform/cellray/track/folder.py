"""A model's folder: weights, recipe and genes, without any code, each under its digest.

======================= =====================================================
``weights.safetensors`` the learner's parameters and buffers
``recipe.yaml``         the recipe
``genes.txt``           the model's genes, one a line, in the order of its input
``model.json``          facts about the training, and the digests of the others
======================= =====================================================
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import yaml
from safetensors import SafetensorError

import cellray
from cellray.core.errors import CellrayError
from cellray.core.recipe import Recipe
from cellray.core.secrets import first_line
from cellray.learn.learner import Learner

FORMAT = 1
WEIGHTS, RECIPE, GENES, FACTS = "weights.safetensors", "recipe.yaml", "genes.txt", "model.json"
MEND = "take another version, or register the model again"


def save_model(learner: Learner, folder: str | Path, *, facts: Mapping[str, Any]) -> None:
    """Write a learner.

    Parameters
    ----------
    learner
        On any device; its weights are stored as they are.
    folder
        Made when it is not there.
    facts
        What ``model.json`` says beside the format and the digests; JSON values.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_model(learner, str(folder / WEIGHTS))
    (folder / RECIPE).write_bytes(learner.recipe.dump().encode())
    (folder / GENES).write_bytes("".join(f"{gene}\n" for gene in learner.genes).encode())
    sealed = {name: file_digest(folder / name) for name in (WEIGHTS, RECIPE, GENES)}
    document = {
        "format": FORMAT,
        "cellray_version": cellray.__version__,
        "batches": list(learner.batches),
        **facts,
        "sha256": sealed,
    }
    (folder / FACTS).write_text(json.dumps(document, indent=2) + "\n")


def load_model(folder: str | Path) -> Learner:
    """Read a learner that `save_model` wrote, on the CPU; no code comes from the folder.

    Raises
    ------
    CellrayError
        A file is missing or not the one that was written, or the format is another.
    """
    folder = Path(folder)
    facts = read_facts(folder)
    for name in (WEIGHTS, RECIPE, GENES):
        if not (folder / name).is_file():
            raise CellrayError(f"the model in {folder} lacks {name}", MEND)
        if file_digest(folder / name) != facts["sha256"].get(name):
            raise CellrayError(f"{name} in {folder} is not the file that was registered", MEND)
    recipe = Recipe.of(yaml.safe_load((folder / RECIPE).read_bytes()))
    genes = (folder / GENES).read_bytes().decode().split("\n")[:-1]
    learner = Learner.of(recipe, genes, batches=facts.get("batches", ()))
    try:
        safetensors.torch.load_model(learner, str(folder / WEIGHTS))
    except (RuntimeError, SafetensorError) as error:
        raise CellrayError(
            f"the weights in {folder} do not fit this cellray {cellray.__version__}: "
            f"{first_line(error)}",
            f"use cellray {facts['cellray_version']}, which wrote them",
        ) from error
    return learner.eval()


def read_facts(folder: str | Path) -> dict[str, Any]:
    """Read ``model.json``.

    Raises
    ------
    CellrayError
        It is missing, broken or of another format.
    """
    path = Path(folder) / FACTS
    try:
        facts: dict[str, Any] = json.loads(path.read_bytes())
        found = facts["format"]
    except FileNotFoundError as error:
        raise CellrayError(f"{folder} holds no model: {FACTS} is missing", MEND) from error
    except (ValueError, TypeError, KeyError) as error:
        raise CellrayError(f"{path} is broken", MEND) from error
    if found != FORMAT:
        raise CellrayError(
            f"{folder} has model format {found}, this cellray reads {FORMAT}",
            "install the cellray that wrote it",
        )
    return facts


LOADED_FROM = "registered_model_meta"  # MLflow writes it into a local store's own files


def file_digest(path: Path) -> str:
    """Give the SHA-256 of a file, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digest(folder: Path) -> str:
    """Give one SHA-256 over the names and contents of all files in a folder, as hex.

    The file at the top in which MLflow notes, at loading, where a model came from does not count.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    files = [path for path in files if path != folder / LOADED_FROM]
    lines = [f"{file_digest(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
