"""Fixtures that every kind of test shares."""

import logging
import os
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar
from zlib import crc32

import pytest
from hypothesis import settings

# Threads that wait for each other on a busy machine cost twenty times what they save on small
# matrices; the processes that tests start inherit this.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# How long an example takes says more of the machine than of the code.
settings.register_profile("cellray", deadline=None)
settings.load_profile("cellray")

ROOT = Path(__file__).parents[1]
Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small products on threads that other processes hold up are a hundred times slower."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real labelled counts, when it is there."""
    folder = Path(os.environ.get("CELLRAY_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real counts at {folder}; set CELLRAY_SHARED_DATA")
    return folder


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """One in-process Ray for all tests that need one; `cellray.feed.session` finds it."""
    import ray

    with warnings.catch_warnings():
        # Ray's own start-up code warns of things that it will change; nothing of ours runs here.
        warnings.simplefilter("ignore")
        ray.init(
            address="local",
            num_cpus=2,
            object_store_memory=500_000_000,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    yield
    ray.shutdown()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--share", metavar="K/N", help="of the slow tests one share of N, from 0")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the slow tests of other shares: by their names, so that none is in two."""
    if not (asked := config.getoption("--share")):
        return
    share, shares = map(int, asked.split("/"))
    others = [
        one
        for one in items
        if one.get_closest_marker("slow") and crc32(one.nodeid.encode()) % shares != share
    ]
    left_out = set(others)
    items[:] = [one for one in items if one not in left_out]
    config.hook.pytest_deselected(items=others)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return refuse_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return refuse_skip((yield))


def refuse_skip(report: Report) -> Report:
    """Under CI everything runs: only the lack of a GPU may skip a test."""
    if os.environ.get("CI") == "true" and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if "GPU" not in reason:
            report.outcome = "failed"
            report.longrepr = f"CI may not skip: {reason}"
    return report


@pytest.fixture(scope="session")
def parse_command() -> Callable[[Sequence[str]], dict[str, Any]]:
    """Parse the words after ``cellray`` without running them, and give the parameters."""
    import typer.main

    from cellray.cli import app

    def parse(words: Sequence[str]) -> dict[str, Any]:
        command, rest = typer.main.get_command(app), list(words)
        context = None
        while hasattr(command, "resolve_command"):
            context = command.make_context(None, [], parent=context, resilient_parsing=True)
            _, command, rest = command.resolve_command(context, rest)
        parsed: dict[str, Any] = command.make_context(None, rest, parent=context).params
        return parsed

    return parse
