"""``cellray ingest``, ``inspect`` and ``split``: atlases made, described, and split."""

import shlex
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cellray import answers, answers_plans
from cellray.cli_verbs import (
    ATLAS,
    Changes,
    DryRun,
    Json,
    RecipeFile,
    Workers,
    examples,
    recipe_of,
    words,
)
from cellray.console import console
from cellray.core.errors import CellrayError

MOST_MEMORY = 1 << 20
"""GiB that no machine has."""

atlas_verbs = typer.Typer()

Url = Annotated[str, typer.Argument(metavar="URL", help=ATLAS)]


@atlas_verbs.command(
    epilog=examples(
        "cellray ingest plate1.h5ad plate2.h5ad --out plates.zarr",
        "cellray ingest a.h5ad b.h5ad --out all.zarr --join outer --gene-names ids",
        "cellray ingest filtered_feature_bc_matrix.h5 --out s3://bucket/pbmc "
        "--matrices 'obsm/Antibody Capture'",
        "cellray ingest plate3.h5ad --out plates.zarr --append",
        "cellray ingest plate1.h5ad plate2.h5ad --out plates.zarr --dry-run",
    )
)
def ingest(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="SOURCE...", help=".h5ad and .h5mu files, 10x .h5 files, 10x mtx folders."
        ),
    ],
    out: Annotated[str, typer.Option(metavar="URL", help=f"The atlas to write. {ATLAS}")],
    *,
    append: Annotated[
        bool, typer.Option("--append", help="Add to the atlas that is there, as a new part.")
    ] = False,
    join: Annotated[
        Literal["inner", "outer"],
        typer.Option(help="Genes that all sources have, or all genes of any."),
    ] = "inner",
    genes: Annotated[
        str | None,
        typer.Option(help="A vocabulary instead: a file of one name a line, .h5ad or atlas."),
    ] = None,
    gene_names: Annotated[
        str, typer.Option(help="What names genes: index, ids, symbols, or a column of var.")
    ] = "index",
    duplicates: Annotated[
        Literal["refuse", "sum"], typer.Option(help="What becomes of genes of one name.")
    ] = "refuse",
    layer: Annotated[
        str | None, typer.Option(help="Matrix of the .h5ad files: X, raw, or a layer's name.")
    ] = None,
    rna: Annotated[str, typer.Option(help="Modality of .h5mu files that holds counts.")] = "rna",
    matrices: Annotated[
        str | None,
        typer.Option(help="What rides along, as a,b: layers/NAME, obsm/NAME, obsm/MODALITY."),
    ] = None,
    obs: Annotated[
        str | None, typer.Option(help="obs columns to keep, as a,b,c; all by default.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the cells' shuffle.")] = 0,
    memory: Annotated[float, typer.Option(help="GiB of memory to stay below.")] = 2.0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an atlas that is there.")
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin anew where a killed ingest could go on.")
    ] = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Turn files of counts into one atlas, or add them to one.

    Cells are shuffled over all files; memory stays bounded. An ingest that was killed goes on
    where it was when the same command is given again.
    """
    with console(as_json=json) as to:
        from cellray.atlas import intake, write
        from cellray.atlas.describe import describe
        from cellray.atlas.staging import check_place

        if not 0 < memory < MOST_MEMORY:
            raise CellrayError(f"--memory is {memory}", "give a number of GiB, such as 2")
        began = time.monotonic()
        settings: dict[str, Any] = {
            "layer": layer,
            "rna": rna,
            "gene_names": gene_names,
            "duplicates": duplicates,
            "obs": words(obs),
            "seed": seed,
            "memory": int(memory * 2**30),
        }
        if append and (overwrite or genes or matrices or join != "inner"):
            raise CellrayError(
                "an append takes genes and matrices as the atlas has them",
                "leave out --overwrite, --genes, --matrices and --join",
            )
        if not append:
            settings |= {"join": join, "genes": genes, "matrices": words(matrices) or ()}
        if dry_run:
            planned = (intake.of_more if append else intake.of_new)(sources, out, **settings)
            check_place(planned.url, overwrite=overwrite or append)
            to.answer(planned.document(), answers_plans.intake_text(planned.document()))
            return
        settings |= {"restart": restart, "progress": to.progress}
        if append:
            atlas = write.append(sources, out, **settings)
        else:
            atlas = write.ingest(sources, out, overwrite=overwrite, **settings)
        seconds = time.monotonic() - began
        done = atlas.part_cells[-1]
        notes = [
            f"only {one['genes_matched']:,} of the {one['genes']:,} genes of {one['name']} are in "
            "the atlas\n"
            for one in atlas.manifest.parts[-1].sources
            if one["genes_matched"] < one["genes"] / 2
        ]
        if append:
            notes.append(answers.parts_text(atlas.url, atlas.part_cells))
        text = "".join(notes) + (
            f"wrote {atlas.url}: {atlas.n_cells:,} cells x {atlas.n_genes:,} genes, {done:,} of "
            f"them in {seconds:.1f} s ({done / seconds:,.0f} cells/s)\n"
            f"next: {answers.called()} inspect {shlex.quote(out)}"
        )
        to.answer(describe(atlas) | {"seconds": seconds} if json else {}, text)


@atlas_verbs.command(
    epilog=examples(
        "cellray inspect plates.zarr",
        "cellray inspect s3://bucket/pbmc --json",
        "cellray inspect plates.zarr --verify",
        "cellray inspect plates.zarr --plan --label plate --set data.batch_size=4096",
    )
)
def inspect(
    atlas: Url,
    *,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say instead what training on it reads and mixes.")
    ] = False,
    recipe: RecipeFile = None,
    changes: Changes = None,
    num_workers: Workers = None,
    label: Annotated[
        str | None, typer.Option(help="With --plan: obs column whose entropy a batch has.")
    ] = None,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Read all content anew and compare it with its digest."),
    ] = False,
    json: Json = False,
) -> None:
    """Say what an atlas holds, or what a plan of training on it costs.

    Size, dtypes, chunks and shards, obs columns with their values, sources, splits, digest.

    With --plan: requests and bytes of a slab and an epoch, decode amplification, entropy of a
    label in a batch, memory, steps, and what an epoch leaves out or repeats.

    With --verify: whether counts, what rides along, obs and var are as they were written.
    """
    with console(as_json=json) as to:
        from cellray.atlas.store import Atlas

        if plan and verify:
            raise CellrayError("a plan reads no content to verify", "leave out --plan or --verify")
        if plan:
            from cellray.atlas.choose import check_read, choose
            from cellray.atlas.forecast import forecast

            chosen = recipe_of(recipe, changes, num_workers)
            opened = Atlas.open(atlas)
            check_read(chosen.data, opened)
            document = forecast(
                opened,
                choose(chosen, opened),
                world=chosen.train.worlds[-1],
                label=label,
                matrices=chosen.data.matrices,
            )
            to.answer(document, answers.plan_text(document))
            return
        if recipe or changes or num_workers or label:
            raise CellrayError(
                "--recipe, --set, --num-workers and --label are for a plan", "add --plan"
            )
        from cellray.atlas.describe import describe

        opened = Atlas.open(atlas)
        if verify:
            from cellray.atlas.verify import verify as verify_content

            verify_content(opened, progress=to.progress)
        document = describe(opened) | ({"verified": True} if verify else {})
        to.answer(document, answers.atlas_text(document))


@atlas_verbs.command(
    epilog=examples(
        "cellray split plates.zarr --name holdout --by donor --test 0.1",
        "cellray split plates.zarr --name drugs --by drug --values dmso,tnf --test-values il6",
        "cellray split plates.zarr --name even --stratify cell_type --validation 0.2",
    )
)
def split(
    atlas: Url,
    name: Annotated[str, typer.Option(help="What recipes call it: data.split=NAME.")],
    *,
    by: Annotated[
        str | None, typer.Option(help="obs column whose values are held out whole: a donor.")
    ] = None,
    values: Annotated[
        str | None,
        typer.Option(
            help='Values of --by that validate, as a,b,c or "a, with comma",b; else drawn.'
        ),
    ] = None,
    test_values: Annotated[
        str | None, typer.Option(help="Values of --by that test, as a,b,c.")
    ] = None,
    stratify: Annotated[
        str | None, typer.Option(help="obs column whose every value is split alike: a label.")
    ] = None,
    validation: Annotated[
        float | None,
        typer.Option(help="Fraction of the cells that validates.", show_default="0.1"),
    ] = None,
    test: Annotated[
        float | None, typer.Option(help="Fraction of the cells that tests.", show_default="0.1")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the draw.")] = 0,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Split an atlas's cells once and store the split in it.

    Recipes name it as data.split: they train on its training cells, validate on its validation
    cells and never touch its test cells. The atlas's digest stays.
    """
    with console(as_json=json) as to:
        from cellray.atlas.splits import SplitSpec, plan_split, store_split
        from cellray.atlas.store import Atlas

        fractions = {"validation": validation, "test": test}
        given = {side: part for side, part in fractions.items() if part is not None}
        if given and (values or test_values):
            raise CellrayError(
                "what is held out is said twice, by values and by fractions",
                f"leave out --{' and --'.join(given)}, or --values and --test-values",
            )
        spec = SplitSpec(
            by=by,
            values=tuple(words(values) or ()),
            test_values=tuple(words(test_values) or ()),
            stratify=stratify,
            seed=seed,
            **({"validation": 0.1, "test": 0.1} | given),
        )
        if dry_run:
            planned = {"name": name, **plan_split(Atlas.open(atlas), name, spec)[1]}
            to.answer(planned, answers_plans.dry_text(planned))
            return
        facts = store_split(Atlas.open(atlas), name, spec)
        sides = ", ".join(f"{count:,} {side}" for side, count in facts["cells"].items())
        where = f"--atlas {shlex.quote(atlas)} --name NAME --set data.split={name}"
        text = f"split '{name}': {sides} cells\nnext: {answers.called()} pretrain {where}"
        to.answer({"name": name, **facts}, text)
