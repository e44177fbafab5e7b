import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from cellray.atlas import passes, staging, stream
from cellray.atlas.manifest import FORMAT, Manifest, publish
from cellray.atlas.mishaps import full_disk
from cellray.atlas.staging import staged
from cellray.atlas.store import Atlas
from cellray.atlas.write import ingest
from cellray.core.errors import CellrayError
from cellray.core.types import Span


@pytest.fixture
def small_pieces(monkeypatch):
    """Make pieces, buckets and shards of a few cells, so that small counts have many."""
    monkeypatch.setattr(passes, "_LEAST_CHUNK", 64)
    monkeypatch.setattr(passes, "_LEAST_RUN", 1)
    monkeypatch.setattr(passes, "CHUNK_CELLS", 2)
    monkeypatch.setattr(passes, "_INDPTR_CHUNK", 2)
    monkeypatch.setattr(stream, "CHUNKS_PER_SHARD", 2)


class StoppedError(SystemExit):
    """What a signal raises in the middle of an ingest."""


def stop_after(count):
    """Make a progress that stops the ingest at its call numbered `count`."""
    calls = []

    def progress(*call):
        calls.append(call)
        if len(calls) == count:
            raise StoppedError

    return progress


@pytest.mark.usefixtures("small_pieces")
def test_an_ingest_goes_on_where_it_was_stopped(counted, h5ad, tmp_path, monkeypatch):
    path = h5ad(counted(60, 30))
    steps = []
    whole = ingest([path], tmp_path / "whole", progress=lambda *step: steps.append(step))
    assert len(steps) >= 12
    packed = []
    pack = stream.pack
    monkeypatch.setattr(stream, "pack", lambda *args: packed.append(1) or pack(*args))
    for count in range(1, len(steps) + 1):
        out = tmp_path / str(count)
        with pytest.raises(StoppedError):
            ingest([path], out, progress=stop_after(count))
        assert not out.exists()
        again = []
        resumed = ingest([path], out, progress=lambda *step, again=again: again.append(step))
        assert resumed.digest == whole.digest
        assert len(again) <= len(steps) - count + 2  # at most a piece and a shard are done twice
        assert (resumed.read(Span(0, 60)).to_scipy() != whole.read(Span(0, 60)).to_scipy()).nnz == 0
        assert Atlas.open(str(out)).obs().equals(whole.obs())
    assert sorted(found.name for found in tmp_path.iterdir()) == sorted(
        ["a.h5ad", "whole", *map(str, range(1, len(steps) + 1))]
    )


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("changed", ["source", "seed", "restart"])
def test_another_ingest_does_not_go_on_with_what_was_left(counted, h5ad, tmp_path, changed):
    path = h5ad(counted(60, 30))
    with pytest.raises(StoppedError):
        ingest([path], tmp_path / "out", progress=stop_after(9))
    settings = {"source": {}, "seed": {"seed": 3}, "restart": {"restart": True}}[changed]
    if changed == "source":
        h5ad(counted(60, 30, seed=1))
    steps = []
    ours = ingest([path], tmp_path / "out", progress=lambda *s: steps.append(s), **settings)
    settings.pop("restart", None)
    assert ours.digest == ingest([path], tmp_path / "fresh", **settings).digest
    assert steps[0][1] < 60


def test_two_ingests_do_not_write_one_atlas(counted, h5ad, tmp_path):
    path = h5ad(counted())

    def other(*_):
        with pytest.raises(CellrayError, match="another ingest is writing"):
            ingest([path], tmp_path / "out")

    assert ingest([path], tmp_path / "out", progress=other).n_cells == 40


def test_nothing_is_left_of_a_later_source_that_is_bad(counted, h5ad, tmp_path):
    bad = counted()
    bad.X.data[-1] = 0.5
    with pytest.raises(CellrayError, match="fractional"):
        ingest([h5ad(counted(), "1.h5ad"), h5ad(bad, "2.h5ad")], tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.h5ad", "2.h5ad"]


def test_an_atlas_comes_back_when_the_new_one_cannot_take_its_place(counted, h5ad, tmp_path):
    out = tmp_path / "out"
    first = ingest([h5ad(counted())], out)

    # Nothing is written, so that moving it there fails after the old one has moved away.
    def fail():
        with staged(str(out), fingerprint="", overwrite=True) as stage:
            Path(stage.url).rmdir()

    with pytest.raises(FileNotFoundError):
        fail()
    assert Atlas.open(str(out)).digest == first.digest
    assert sorted(found.name for found in tmp_path.iterdir()) == ["a.h5ad", "out"]


def test_an_error_of_any_kind_leaves_nothing(counted, h5ad, tmp_path):
    def fail(*_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ingest([h5ad(counted())], tmp_path / "out", progress=fail)
    assert [found.name for found in tmp_path.iterdir()] == ["a.h5ad"]


@pytest.mark.parametrize("stage", ["read", "write"])
def test_a_prefix_that_another_ingest_took_over_is_left_to_it(
    counted, h5ad, tmp_path, bucket, stage, monkeypatch, files
):
    path, found = h5ad(counted()), []

    def take_over(at, *_):
        if at == stage and not found:
            (tmp_path / "elsewhere").mkdir()
            monkeypatch.chdir(tmp_path / "elsewhere")
            found.append(ingest([path], "s3://bucket/a", seed=1))
            monkeypatch.chdir(tmp_path)
            found.append(files(bucket))

    with pytest.raises(CellrayError, match="another ingest took over s3://bucket/a; let that one"):
        ingest([path], "s3://bucket/a", progress=take_over)
    assert found[0].digest == ingest([path], tmp_path / "alone", seed=1).digest
    assert files(bucket) == found[1]


def test_a_prefix_that_is_being_taken_over_is_not_cleaned_up(counted, h5ad, bucket, files):
    path, left = h5ad(counted()), []

    def take_over(at, *_):
        if at == "write" and not left:
            (bucket / "a" / staging.MARK).write_text("another's")
            left.append(files(bucket))
            raise left_off

    left_off = RuntimeError("an error that the other's deleting causes")
    with pytest.raises(CellrayError, match="another ingest took over") as caught:
        ingest([path], "s3://bucket/a", progress=take_over)
    assert caught.value.__cause__ is left_off
    # Nothing is deleted; a shard that was on its way to the store may still have come.
    assert files(bucket).items() >= left[0].items()
    assert ingest([path], "s3://bucket/a").n_cells == 40
    assert bucket / "a" / staging.MARK not in files(bucket)


def test_a_replaced_prefix_stays_until_the_sources_were_read(counted, h5ad, bucket, files):
    first = ingest([h5ad(counted())], "s3://bucket/a")
    bad = counted(seed=1)
    bad.X.data[-1] = 0.5
    with pytest.raises(CellrayError, match="fractional"):
        ingest([h5ad(bad, "bad.h5ad")], "s3://bucket/a", overwrite=True)
    assert Atlas.open("s3://bucket/a").digest == first.digest
    assert bucket / "a" / staging.MARK not in files(bucket)
    again = ingest([h5ad(counted(seed=2), "2.h5ad")], "s3://bucket/a", overwrite=True)
    assert Atlas.open("s3://bucket/a").digest == again.digest != first.digest


def test_publish_asks_first_whether_the_place_is_ours(bucket, files):
    def lose():
        with staged("s3://bucket/a", fingerprint="") as stage:
            (bucket / "a" / staging.MARK).write_text("another's")
            publish(stage.url, Manifest(FORMAT, 1, ()), stage.check)

    with pytest.raises(CellrayError, match="another ingest took over"):
        lose()
    assert list(files(bucket)) == [bucket / "a" / staging.MARK]


SLOW = """
import sys, time
from cellray.atlas.write import ingest
def wait(stage, done, total):
    if stage == "write":
        print("writing", flush=True)
        for _ in range(600):  # a signal that comes just before a sleep does not cut it short
            time.sleep(0.1)
ingest([sys.argv[1]], sys.argv[2], progress=wait)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_process_that_is_ended_leaves_nothing_that_opens(counted, h5ad, tmp_path, number):
    command = [sys.executable, "-c", SLOW, h5ad(counted()), tmp_path / "out"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout.readline() == b"writing\n"
        process.send_signal(number)
        assert process.wait(timeout=120) != 0
    left = [path for path in tmp_path.iterdir() if path.name != "a.h5ad"]
    for path in (tmp_path / "out", *left, *(path / "atlas" for path in left)):
        with pytest.raises(CellrayError):
            Atlas.open(str(path))
    seen = []
    done = ingest([tmp_path / "a.h5ad"], tmp_path / "out", progress=lambda *s: seen.append(s[0]))
    assert "read" not in seen  # it goes on after what was read
    assert done.digest == ingest([tmp_path / "a.h5ad"], tmp_path / "fresh").digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5ad", "fresh", "out"]


def test_the_signal_handler_is_put_back(counted, h5ad, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    ingest([h5ad(counted())], tmp_path / "out")
    assert signal.getsignal(signal.SIGTERM) == before


@contextmanager
def small_disk(folder, kib):
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", folder]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no small disk: mounting a tmpfs needs the rights of root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_named_and_nothing_is_left(counted, h5ad, tmp_path):
    path = h5ad(counted(400, 300, density=0.5))
    outcomes, causes = [], set()
    # Large enough for ever more of it: the spill, the counts, the tables, all.
    for kib in (64, 300, 350, 400, 450, 500, 550, 600, 4_000):
        with small_disk(tmp_path / "disk", kib) as disk:
            error = refusal(path, disk / "out")
            outcomes.append(error is None)
            if error is not None:
                assert f"the disk of {disk} is full" in str(error)
                assert "360,000 bytes" in error.mend
                assert not list(disk.iterdir())
                causes.add(type(error.__cause__).__name__)
    assert outcomes == sorted(outcomes)
    assert outcomes[0] is False
    assert outcomes[-1] is True
    assert len(causes) > 1, causes


def refusal(path, out):
    try:
        ingest([path], out)
    except CellrayError as error:
        return error
    return None


def test_other_errors_pass_through_unchanged(tmp_path):
    with pytest.raises(OSError, match="something else"), full_disk(tmp_path, lambda: 1):
        raise OSError(5, "something else")
