"""Watching a registered model: every new version is evaluated by a suite, once."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Self

import pandas as pd

from cellray.atlas.store import Atlas
from cellray.atlas.urls import normalise
from cellray.cluster.address import ClusterError, find_address
from cellray.core.errors import CellrayError
from cellray.evaluation.asked import MAX_CELLS
from cellray.evaluation.gates import (
    CHAMPION,
    champion_evaluations,
    judge_stored,
    newest,
    protocols,
)
from cellray.evaluation.held_out import settled
from cellray.evaluation.submit import Done, Runner, in_process, runner
from cellray.evaluation.suite import Suite
from cellray.track.catalogue import aliases_of, find_model, find_version, show_model
from cellray.track.evaluations import DIGEST, Evaluation, evaluations_of, options
from cellray.track.promotion import promote
from cellray.track.store import StoreError, client, store_errors

ATTEMPTS = 2
EVERY = 60.0
TAG = "cellray.watch"
"""Begin of the tag of a version that was dealt with: ``cellray.watch.ID``, ID that of the asked."""


@dataclass(frozen=True)
class Event:
    """Something that happened to a version.

    Attributes
    ----------
    uri
        The version.
    what
        ``evaluating``, ``passed``, ``failed`` (a gate), ``error`` or ``promoted``.
    line
        For people.
    facts
        For programs.
    """

    uri: str
    what: str
    line: str
    facts: Mapping[str, Any] = field(default_factory=dict)


def watch(
    name: str,
    *,
    atlas: str,
    suite: Suite,
    file: str,
    given: Mapping[str, Any] = MappingProxyType({}),
    max_cells: int = MAX_CELLS,
    every: float = EVERY,
    once: bool = False,
    promoting: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> Iterator[Event]:
    """Evaluate the versions of a model that a suite has not seen on this atlas, and go on looking.

    An evaluation is a job of the Ray cluster that ``RAY_ADDRESS`` names, or else a process of its
    own. One that fails is tried once more. A version that was dealt with is tagged, so that
    neither the next look nor a watch that is started anew repeats it; with another suite, atlas,
    state of the atlas or column it is a new one.

    Parameters
    ----------
    name
        The registered model.
    atlas
        The atlas's URL.
    suite, file
        The suite, and where it was read from.
    given, max_cells
        As of `cellray.evaluation.run.evaluate_suite`.
    every
        Seconds between two looks.
    once
        Whether to end after the first.
    promoting
        Whether a version that passes all gates becomes the champion, unless that is a newer one.
    tell
        Is told in a line of what is no event: a store or a cluster that does not answer.

    Yields
    ------
    Event
        As it happens.

    Raises
    ------
    CellrayError
        No such model, an atlas or column that cannot be used, or nothing to promote by.
    """
    watcher = _Watcher.of(name, atlas, suite, file, given, max_cells, promoting=promoting)
    while True:
        try:
            yield from watcher.look()
        except (StoreError, ClusterError) as error:
            if once:
                raise
            tell(f"{error.what}; trying again in {every:g} s")
        if once:
            return
        time.sleep(every)


def dry_run(
    name: str,
    *,
    atlas: str,
    suite: Suite,
    file: str,
    given: Mapping[str, Any] = MappingProxyType({}),
    max_cells: int = MAX_CELLS,
    promoting: bool = False,
) -> dict[str, Any]:
    """Say what the first look of `watch` would do; nothing is started or written.

    Raises
    ------
    CellrayError
        What `watch` refuses before it looks.
    """
    watcher = _Watcher.of(name, atlas, suite, file, given, max_cells, promoting=promoting)
    digest = Atlas.open(watcher.atlas).digest
    new = [version["uri"] for version in watcher.new(digest)]
    judged = [uri for uri in new if watcher.stored(uri, digest) is not None]
    here = watcher.runner is in_process
    return {
        "name": name,
        "atlas": watcher.atlas,
        "suite": file,
        "evaluates": [uri for uri in new if uri not in judged],
        "evaluated_before": judged,
        "runs": "processes on this machine" if here else f"jobs at {find_address().url}",
        "gates": [*suite.gates],
        "promotes": promoting,
    }


@dataclass(frozen=True)
class _Watcher:
    """What is asked of every version."""

    name: str
    atlas: str
    suite: Suite
    file: str
    given: Mapping[str, Any]
    max_cells: int
    runner: Runner
    promoting: bool = field(kw_only=True)

    @classmethod
    def of(
        cls,
        name: str,
        atlas: str,
        suite: Suite,
        file: str,
        given: Mapping[str, Any],
        max_cells: int,
        *,
        promoting: bool,
    ) -> Self:
        """Check what is asked; see `watch`."""
        if promoting and not suite.gates:
            raise CellrayError(
                f"--promote needs gates, and {file} has none",
                "add 'gates:', or leave --promote out",
            )
        atlas = normalise(atlas)  # a job has another working folder
        columns = {column for _, spec in suite.specs(given).values() for column in spec.columns}
        Atlas.open(atlas).obs(sorted(columns))
        show_model(name)
        return cls(name, atlas, suite, file, dict(given), max_cells, runner(), promoting=promoting)

    def new(self, digest: str) -> Iterator[dict[str, Any]]:
        """Find the versions that have no tag yet, the oldest first."""
        tag = self.tag(digest)
        for version in reversed(show_model(self.name)["versions"]):
            if tag not in version["tags"]:
                yield version

    def look(self) -> Iterator[Event]:
        """Deal with the versions that have no tag yet, the oldest first."""
        digest = Atlas.open(self.atlas).digest
        tag = self.tag(digest)
        for version in self.new(digest):
            last = None
            for last in self.deal_with(version["uri"], version["version"], digest):
                yield last
            if last is not None:
                said = f"{last.what} by {self.file} on {self.atlas}"
                with store_errors():
                    client().set_model_version_tag(self.name, str(version["version"]), tag, said)

    def tag(self, digest: str) -> str:
        """Give the tag of the versions that were dealt with."""
        return f"{TAG}.{self.key(digest)}"

    def key(self, digest: str) -> str:
        """Give a name to the suite, what it leaves open, and the state of the atlas and files."""
        asked = [self.suite.model_dump(mode="json"), dict(self.given), self.max_cells, digest]
        wanted = protocols(self.suite.specs(self.given), digest, self.max_cells)
        files = {
            name: [pair for pair in params if pair[0].endswith(DIGEST)]
            for name, (_, _, params) in wanted.items()
        }
        if any(files.values()):
            asked.append(files)
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:12]

    def deal_with(self, uri: str, version: int, digest: str) -> Iterator[Event]:
        """Evaluate a version, judge it, and promote it."""
        try:
            found = self.stored(uri, digest)
            if found is None:
                yield Event(uri, "evaluating", f"{uri}: evaluating by {self.file} on {self.atlas}")
                began = time.monotonic()
                done = self.submit(uri)
                found = self.stored(uri, digest)
                if found is None:
                    yield _failure(uri, done)
                    return
                seconds = f" in {time.monotonic() - began:.0f} s"
            else:
                seconds = " before"
            gates = judge_stored(self.suite, found, champion_evaluations(self.name, version))
            yield _verdict(uri, seconds, gates)
            if self.promoting and gates is not None and gates["passed"].all():
                yield from self.promoted(uri, version)
        except (StoreError, ClusterError):
            raise
        except CellrayError as error:
            yield Event(uri, "error", f"{uri}: {error}", {"error": error.what})

    def submit(self, uri: str) -> Done:
        """Run the evaluation, and once more if it fails."""
        words = [uri, "--atlas", self.atlas, *options(self.given)]
        if self.max_cells != MAX_CELLS:
            words += ["--max-cells", str(self.max_cells)]
        for _ in range(ATTEMPTS):
            done = self.runner(words, self.suite)
            if done.status == 0:
                break
        return done

    @store_errors()
    def stored(self, uri: str, digest: str) -> dict[str, Evaluation] | None:
        """Give the version's evaluations by all entries; None where one is missing."""
        api = client()
        given, _ = settled(self.suite, self.given, Atlas.open(self.atlas))
        wanted = protocols(self.suite.specs(given), digest, self.max_cells)
        found = newest(evaluations_of(api, find_version(api, uri)), wanted)
        return found if found.keys() == wanted.keys() else None

    def promoted(self, uri: str, version: int) -> Iterator[Event]:
        """Make a version the champion, unless that is a newer one."""
        with store_errors():
            holder = aliases_of(find_model(client(), self.name)).get(CHAMPION)
        if holder is not None and holder >= version:
            return
        promote(self.name, source=str(version))
        was = f" (was {holder})" if holder is not None else ""
        yield Event(uri, "promoted", f"{uri} is @{CHAMPION}{was}", {"old": holder})


def _verdict(uri: str, when: str, gates: pd.DataFrame | None) -> Event:
    """Say what the gates say."""
    if gates is None:
        return Event(uri, "passed", f"{uri}: evaluated{when}; the suite has no gates")
    rows = gates.to_dict("records")
    failed = [
        f"{row['metric']} is {row['value']:.4f}, {row['wanted']} wanted"
        for row in rows
        if not row["passed"]
    ]
    words = f"; failed: {'; '.join(failed)}" if failed else ""
    line = f"{uri}: evaluated{when}; {len(rows) - len(failed)} of {len(rows)} gates passed{words}"
    return Event(uri, "failed" if failed else "passed", line, {"gates": rows})


def _failure(uri: str, done: Done) -> Event:
    """Say how an evaluation has failed, with its last lines."""
    how = f"ended with status {done.status}" if done.status else "left no evaluation in MLflow"
    lines = "".join(f"\n  {line}" for line in done.tail)
    line = f"{uri}: the evaluation {how}, and is not tried again{lines}"
    return Event(uri, "error", line, {"status": done.status, "tail": list(done.tail)})
