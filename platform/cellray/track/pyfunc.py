"""The MLflow flavour: writing and checking it, and what ``mlflow.pyfunc`` calls to predict.

A model in MLflow is a folder with the file ``MLmodel``, which names the module that loads it.
Ours names this module and nothing else, and what it loads is data (`cellray.track.folder`).
"""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import mlflow.pyfunc
import numpy as np
import pandas as pd
import yaml
from mlflow.entities import LoggedModel
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec
from pandas.api.extensions import ExtensionDtype
from scipy.sparse import csr_matrix

from cellray.core.errors import CellrayError
from cellray.learn.embed import embed_matrix
from cellray.learn.learner import Learner
from cellray.track.folder import MEND, folder_digest, load_model, save_model

if TYPE_CHECKING:
    from anndata import AnnData

LOADER = "cellray.track.pyfunc"
DATA = "data/model"  # MLflow puts a folder that it is given under data/


def save_flavour(
    learner: Learner, folder: Path, *, facts: Mapping[str, Any], model: LoggedModel
) -> str:
    """Write a learner as MLflow keeps models, and give the digest of all files.

    Parameters
    ----------
    learner
        The model.
    folder
        Must not exist yet.
    facts
        For ``model.json``.
    model
        The entry of MLflow's that the files are going to belong to.
    """
    # A signature of the input would make MLflow refuse AnnData, and list every gene.
    embedding = TensorSpec(np.dtype(np.float32), (-1, learner.encoder.dim))
    entry = Model(
        signature=ModelSignature(outputs=Schema([embedding])),
        artifact_path=model.artifact_location,
        run_id=model.source_run_id,
        model_id=model.model_id,
        model_uuid=model.model_id,
    )
    with TemporaryDirectory(prefix="cellray-") as scratch:
        save_model(learner, Path(scratch) / "model", facts=facts)
        mlflow.pyfunc.save_model(
            path=str(folder),
            loader_module=LOADER,
            data_path=str(Path(scratch) / "model"),
            mlflow_model=entry,
            # Given, so that MLflow does not load the model in a new process to find out; without
            # local labels such as +cpu, which package indexes do not carry.
            pip_requirements=[
                f"{name}=={version(name).partition('+')[0]}"
                for name in ("cellray", "mlflow", "torch")
            ],
        )
    return folder_digest(folder)


def check_flavour(folder: Path, digest: str, name: str) -> Path:
    """Check files from the artifact store before anything of them is used.

    Parameters
    ----------
    folder
        What `save_flavour` wrote, as downloaded.
    digest
        What `save_flavour` gave.
    name
        What to call the model in messages.

    Returns
    -------
    Path
        The folder in it that `cellray.track.folder.load_model` reads.

    Raises
    ------
    CellrayError
        ``MLmodel`` names another loader or brings code, or any file is not the one registered.
    """
    try:
        flavours = yaml.safe_load((folder / "MLmodel").read_bytes())["flavors"]
        named = flavours["python_function"]
    except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        raise CellrayError(f"the MLmodel file of {name} is missing or broken", MEND) from error
    loader, code = named.get("loader_module"), named.get("code")
    if len(flavours) > 1 or loader != LOADER or code or named.get("data") != DATA:
        raise CellrayError(
            f"the MLmodel file of {name} asks for other code than cellray's (loader '{loader}')",
            MEND,
        )
    if folder_digest(folder) != digest:
        raise CellrayError(f"the files of {name} are not those that were registered", MEND)
    return folder / DATA


class Embedder:
    """Embeds counts with a learner.

    Parameters
    ----------
    learner
        The model.
    """

    def __init__(self, learner: Learner) -> None:
        self.learner = learner

    def predict(self, data: "AnnData | pd.DataFrame", params: object = None) -> pd.DataFrame:
        """Embed cells.

        Parameters
        ----------
        data
            Counts: an AnnData (its X) or a DataFrame with cells as rows and gene names as columns.
        params
            MLflow passes it; there are none.

        Returns
        -------
        DataFrame
            One row a cell under the cell's name, columns "0" to "D-1", float32.

        Raises
        ------
        CellrayError
            Values that are missing or no counts, no gene in common with the model, or another
            kind of data.
        """
        del params
        from anndata import AnnData  # with xarray half a second, which registering need not spend

        if isinstance(data, AnnData):
            names, genes, counts = data.obs_names, data.var_names, _matrix(data)
        elif isinstance(data, pd.DataFrame):
            names, genes, counts = data.index, data.columns, _numbers(data)
        else:
            raise CellrayError(
                f"cannot embed a {type(data).__name__}",
                "give an AnnData, or a DataFrame whose columns are gene names",
            )
        z_ND = embed_matrix(self.learner, counts, genes.astype(str).to_numpy())
        return pd.DataFrame(z_ND, index=names, columns=[str(d) for d in range(z_ND.shape[1])])


def _load_pyfunc(path: str) -> Embedder:
    """Load the folder that `cellray.track.models.register` logged; MLflow's entry point."""
    return Embedder(load_model(Path(path)))


def _matrix(data: "AnnData") -> csr_matrix[Any]:
    matrix = (data.to_memory() if data.isbacked else data).X
    if matrix is None:
        raise CellrayError("the AnnData has no X", "put the counts into adata.X")
    return csr_matrix(matrix)


def _numbers(data: pd.DataFrame) -> csr_matrix[Any]:
    for name, kind in data.dtypes.items():
        if not pd.api.types.is_numeric_dtype(kind):
            raise CellrayError(
                f"column '{name}' holds no numbers ({kind})", "keep the columns of genes only"
            )
    missing = data.isna().any().to_numpy(dtype=bool)
    if missing.any():
        raise CellrayError(
            f"gene '{data.columns[missing][0]}' has missing values (NA or nan)",
            "write 0 where a gene was not seen, and leave out genes that were not measured",
        )
    if any(isinstance(kind, ExtensionDtype) for kind in data.dtypes):
        return csr_matrix(data.to_numpy(np.float64))  # pandas would make objects of Int64
    return csr_matrix(data.to_numpy())
