"""``cellray embed``: what registered models are for."""

from typing import Annotated, Literal

import typer

from cellray import answers_plans
from cellray.cli_verbs import AtlasUrl, DryRun, Json, ModelUri, examples
from cellray.console import console

embedding = typer.Typer()


@embedding.command(
    epilog=examples(
        "cellray embed models:/plates@champion --atlas plates.zarr --out plates.h5ad",
        "cellray embed models:/plates@champion --atlas s3://b/plates --out s3://b/z.parquet",
        "cellray embed models:/plates@champion --atlas plates.zarr --out embedded.zarr --dry-run",
    )
)
def embed(
    model: ModelUri,
    atlas: AtlasUrl,
    out: Annotated[
        str,
        typer.Option(metavar="URL", help="What to write: .parquet, .h5ad, .zarr, or a folder/."),
    ],
    *,
    key: Annotated[str, typer.Option(help="Name in obsm, of .h5ad and .zarr.")] = "X_cellray",
    kind: Annotated[
        Literal["parquet", "h5ad", "atlas"] | None,
        typer.Option(help="What to write where the suffix does not say it."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a folder of embeddings or an atlas.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that embed; what Ray has by default.")
    ] = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Embed every cell of an atlas.

    A local .parquet holds obs and z0, z1, ... in the order of the sources; .parquet in object
    storage and a folder/ hold the same in many files, in stored order, written as cells come;
    .h5ad holds counts, obs and obsm["X_cellray"]; .zarr is a new atlas, a copy with that obsm.
    """
    with console(as_json=json) as to:
        from cellray.evaluation import write

        if dry_run:
            planned = write.dry_run(atlas, model, out=out, key=key, kind=kind, overwrite=overwrite)
            to.answer(planned, answers_plans.dry_text(planned))
            return
        done = write.embed(
            atlas,
            model,
            out=out,
            key=key,
            kind=kind,
            overwrite=overwrite,
            workers=workers,
            progress=to.progress,
        )
        to.answer(done, f"wrote {out}: {done.cells:,} cells x {done.dimensions} dimensions")
