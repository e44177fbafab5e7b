"""Model cards: what MLflow's pages say of models, versions and runs, kept up to date.

MLflow's UI shows Markdown with tables and links. Of pictures it shows those that its server gives,
so a card names a picture by its run and path, relative to the page: it shows wherever the server
is, and whoever may see the page may see the picture. A card is built anew from what the store
holds, never added to, so that of evaluations that end at once none is lost.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from mlflow import MlflowClient
from mlflow.entities import Run, RunTag
from mlflow.entities.model_registry import ModelVersion

from cellray.track.catalogue import newest_version, tied_metrics
from cellray.track.evaluations import Evaluation, evaluations_of

GAP = "&emsp;"
"""Room between columns, of which MLflow leaves none."""

LITERAL = str.maketrans({"`": "'", "|": r"\|"})
T = TypeVar("T")

MARK = "<!-- cellray writes what stands above anew; what stands below this line is kept -->"
LENGTH = 5000
"""Characters of a description that every database of MLflow's keeps."""

SHOWN = 12
"""Evaluations that a version's card lists at most."""

NOTE, PICTURE, REPORT, SCORE = "mlflow.note.content", "picture", "report", "score"
"""Tags of runs: what MLflow shows as their description, artifacts and a metric that cards show."""

SEARCHED = ("objective", "encoder", "genes", "atlas", "atlas_digest", "digest")
"""Tags that a model has from its newest version: MLflow's list of models is searched by them."""


def searched(tags: Mapping[str, str]) -> dict[str, str]:
    """Choose the tags that a model has from a version."""
    return {key: tags[key] for key in SEARCHED if key in tags}


def write_cards(api: MlflowClient, name: str, version: str) -> None:
    """Write the cards of a version and of its model, from what the store holds."""
    settle(
        api.get_model_version(name, version).description,
        lambda: _version_card(api, api.get_model_version(name, version)),
        lambda text: api.update_model_version(name, version, text),
    )
    write_model_card(api, name)


def write_model_card(api: MlflowClient, name: str) -> None:
    """Write a model's card and tags: those of its newest version."""

    def write(wanted: tuple[str, dict[str, str]]) -> None:
        text, tags = wanted
        api.update_registered_model(name, text)
        for key, value in tags.items():
            api.set_registered_model_tag(name, key, value)

    model = api.get_registered_model(name)
    held = model.description, searched(model.tags)
    settle(held, lambda: _model_card(api, name), write)


def settle(held: T | None, wanted: Callable[[], T], write: Callable[[T], object]) -> None:
    """Write what the store implies, until it implies what was written.

    Between the look and the writing another process may change the store, and write. Whoever
    writes last looks once more, and so what was changed last is written.

    Parameters
    ----------
    held
        What is written already.
    wanted
        Looks into the store.
    write
        Writes what `wanted` gave.
    """
    while (now := wanted()) != held:
        write(now)
        held = now


def note_run(api: MlflowClient, run_id: str, version: ModelVersion) -> None:
    """Say at a training run which version it made."""
    run = api.get_run(run_id)
    made = f"Trained {_version_link(version.name, version.version)}."
    tag_run(
        api, run_id, {NOTE: _above(run.data.tags.get(NOTE), made + _picture(run_id, run.data.tags))}
    )


def note_evaluation(
    api: MlflowClient,
    run_id: str,
    training_run: str,
    version: tuple[str, int],
    artifacts: Path | None,
) -> None:
    """Say at an evaluation's run what was evaluated, and where its report is."""
    known = {REPORT: "report.html", PICTURE: "figures/umap_label.svg"}
    tags = {tag: path for tag, path in known.items() if artifacts and (artifacts / path).exists()}
    trained = api.get_run(training_run).info
    by = _run_link(trained.run_name, trained.experiment_id, training_run)
    text = f"Evaluates {_version_link(*version)}, which {by} trained."
    if REPORT in tags:
        experiment = api.get_run(run_id).info.experiment_id
        link = _run_link("The report", experiment, run_id, tags[REPORT])
        text += f" {link} says how well it does, and beside what."
    tag_run(api, run_id, {**tags, NOTE: text + _picture(run_id, tags)})


def tag_run(api: MlflowClient, run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags of a run all at once, which holds where others set the same at the same time."""
    api.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])


def _version_card(api: MlflowClient, version: ModelVersion) -> str:
    run = _training(api, version)
    found = evaluations_of(api, version)[::-1]
    metrics = {one.key: one.value for one in tied_metrics(api, version)}
    link = _run_link(run.info.run_name, run.info.experiment_id, run.info.run_id)
    head = _facts(version.tags, metrics, link) + _picture(run.info.run_id, run.data.tags)
    shown = range(min(SHOWN, len(found)), -1, -1)
    return _above(version.description, *(head + _evaluations(found, count) for count in shown))


def _model_card(api: MlflowClient, name: str) -> tuple[str, dict[str, str]]:
    """Give a model's text and the tags of its newest version."""
    old = api.get_registered_model(name).description
    newest = newest_version(api, name)
    if newest is None:
        return old or "", {}
    uri = f"models:/{name}/{newest.version}"
    training = _training(api, newest)
    shown: dict[str, Mapping[str, str]] = {training.info.run_id: training.data.tags}
    shown |= {one.run_id: one.tags for one in evaluations_of(api, newest) if PICTURE in one.tags}
    picture = _picture(*list(shown.items())[-1])
    text = f"""\
An encoder of single cells: from counts to embeddings. The newest is \
{_version_link(name, newest.version)}; a version's page says what it was trained on, and how it \
was evaluated. Where `MLFLOW_TRACKING_URI` names this store, an AnnData of counts is embedded by

```python
import mlflow

model = mlflow.pyfunc.load_model("{uri}")
adata.obsm["X_cellray"] = model.predict(adata).to_numpy()
```

and a whole atlas by

```
cellray embed {uri} --atlas URL --out FILE.h5ad
```{picture}"""
    return _above(old, text), searched(newest.tags)


def _training(api: MlflowClient, version: ModelVersion) -> Run:
    assert version.run_id  # cellray registers no version without
    return api.get_run(version.run_id)


def _facts(tags: Mapping[str, str], metrics: Mapping[str, float], run: str) -> str:
    """Lay out what a version is, and where it comes from."""
    numbers = {name: f"{int(tags[name]):,}" for name in ("genes", "cells") if name in tags}
    rows = {
        "objective": _code(tags.get("objective", "")),
        "encoder": _code(tags.get("encoder", "")),
        "genes": numbers.get("genes"),
        "dimensions": tags.get("dimensions"),
        "atlas": _code(tags.get("atlas", "")),
        "atlas digest": _code(tags.get("atlas_digest", "")),
        "cells": numbers.get("cells"),
        "epochs": tags.get("epochs"),
        "best validation loss": _number(metrics.get("best_validation_loss")),
        "best step": _number(metrics.get("best_step")),
        "digest": _code(tags.get("digest", "")),
        "commit": _code(tags.get("git_commit", "")),
        "trained by": run,
    }
    cells = f" on {numbers['cells']} cells" if "cells" in numbers else ""
    head = f"{tags['encoder']} encoder, pre-trained by {tags['objective']}{cells}.\n\n"
    return head + _table((GAP, GAP), [(name, value) for name, value in rows.items() if value])


def _evaluations(found: Sequence[Evaluation], count: int) -> str:
    """List the newest evaluations, each by its first score, and draw the newest map."""
    if not found:
        return ""
    rows = []
    for one in found[:count]:
        label = f" of {_code(one.params['label'])}" if "label" in one.params else ""
        score = one.tags.get(SCORE, "")
        report = one.tags.get(REPORT)
        gates = f", gates {one.tags['gates']}" if "gates" in one.tags else ""
        rows.append(
            (
                _run_link(one.task, one.experiment_id, one.run_id) + label,
                _code(one.dataset),
                f"{_code(score)} {_number(one.metrics[score])}" if score in one.metrics else "",
                (_run_link("report", one.experiment_id, one.run_id, report) if report else "")
                + gates,
            )
        )
    more = "" if count == len(found) else f"\n\nThe {count} newest of {len(found)}."
    drawn = next((one for one in found if PICTURE in one.tags), None)
    picture = "" if drawn is None else _picture(drawn.run_id, drawn.tags)
    heads = ("evaluation", "atlas", "score", "")
    return f"\n\n### Evaluations\n\n{_table(heads, rows)}{more}{picture}"


def _above(old: str | None, *texts: str) -> str:
    """Keep what a person wrote, and put above it the first text that there is room for.

    Ours comes first, since lists of versions show how a description begins.
    """
    kept = (old or "").rpartition(MARK)[2].strip()
    whole = (f"{text}\n\n{MARK}\n\n{kept}".rstrip() for text in texts)
    return next((text for text in whole if len(text) <= LENGTH), kept)


def _version_link(name: str, version: str | int) -> str:
    return f"[version {version} of {_plain(name)}](#/models/{quote(name)}/versions/{version})"


def _run_link(text: str, experiment_id: str, run_id: str, artifact: str | None = None) -> str:
    path = "" if artifact is None else f"/artifacts/{quote(artifact)}"
    return f"[{_plain(text)}](#/experiments/{experiment_id}/runs/{run_id}{path})"


def _picture(run_id: str, tags: Mapping[str, str]) -> str:
    """Show the picture of a run, if it has one."""
    if PICTURE not in tags:
        return ""
    return f"\n\n![](get-artifact?path={quote(tags[PICTURE], safe='')}&run_uuid={run_id})"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a table."""
    head, *body = ("| " + f"{GAP} | ".join(line) + " |" for line in (heads, *rows))
    return "\n".join([head, "| --- " * len(heads) + "|", *body])


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) > 1 else f"{value:.4g}"


def _code(text: str) -> str:
    """Write text from outside so that nothing in it is taken for Markdown."""
    return f"`{' '.join(text.split()).translate(LITERAL)}`" if text else ""


def _plain(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]()#+!|<>@~:-])", r"\\\1", text)
