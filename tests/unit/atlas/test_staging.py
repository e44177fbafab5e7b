import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest
import zarr
from obstore.store import LocalStore

from cellray.atlas import staging, storage, store
from cellray.atlas.staging import full_disk, staged
from cellray.atlas.store import Atlas
from cellray.atlas.write import ingest
from cellray.core.errors import CellrayError


@pytest.mark.parametrize("stage", ["read", "write"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_nothing_is_left_of_what_was_interrupted(counted, h5ad, tmp_path, stage, error):
    def stop(at, *_):
        if at == stage:
            raise error

    with pytest.raises(error):
        ingest([h5ad(counted())], tmp_path / "deep" / "down" / "out", progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5ad"]


def test_nothing_is_left_of_a_later_source_that_is_bad(counted, h5ad, tmp_path):
    bad = counted()
    bad.X.data[-1] = 0.5
    with pytest.raises(CellrayError, match="fractional"):
        ingest([h5ad(counted(), "1.h5ad"), h5ad(bad, "2.h5ad")], tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.h5ad", "2.h5ad"]


def test_missing_folders_are_made(counted, h5ad, tmp_path):
    assert ingest([h5ad(counted())], tmp_path / "deep" / "down" / "out").n_cells == 40


def test_an_atlas_is_replaced_only_when_told(counted, h5ad, tmp_path):
    path, out = h5ad(counted()), tmp_path / "out"
    first = ingest([path], out)
    with pytest.raises(CellrayError, match="out is there already"):
        ingest([path], out, seed=1)
    assert Atlas.open(str(out)).digest == first.digest

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest([path], out, seed=1, overwrite=True, progress=stop)
    assert Atlas.open(str(out)).digest == first.digest
    assert ingest([path], out, seed=1, overwrite=True).digest != first.digest
    assert sorted(found.name for found in tmp_path.iterdir()) == ["a.h5ad", "out"]


def test_what_is_no_atlas_is_never_replaced(counted, h5ad, tmp_path):
    path = h5ad(counted())
    zarr.create_group(tmp_path / "other", attributes={"kept": 1})
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes").write_text("kept")
    for name in ("other", "file", "folder"):
        with pytest.raises(CellrayError, match="no atlas"):
            ingest([path], tmp_path / name, overwrite=True)
    assert zarr.open_group(tmp_path / "other").attrs["kept"] == 1
    assert (tmp_path / "folder" / "notes").read_text() == "kept"


def test_an_empty_folder_may_be_used(counted, h5ad, tmp_path):
    (tmp_path / "out").mkdir()
    assert ingest([h5ad(counted())], tmp_path / "out").n_cells == 40


def test_an_atlas_comes_back_when_the_new_one_cannot_take_its_place(counted, h5ad, tmp_path):
    out = tmp_path / "out"
    first = ingest([h5ad(counted())], out)
    # Nothing is written, so that moving it there fails after the old one has moved away.
    with pytest.raises(FileNotFoundError), staged(str(out), overwrite=True):
        pass
    assert Atlas.open(str(out)).digest == first.digest
    assert sorted(found.name for found in tmp_path.iterdir()) == ["a.h5ad", "out"]


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """Keep what goes to ``s3://bucket/`` in a folder, written object by object."""
    folder = tmp_path / "bucket"

    def open_folder(url, *, create=False):
        place = folder / url.removeprefix("s3://bucket/")
        return LocalStore(place, mkdir=True, automatic_cleanup=True)

    for module in (staging, storage, store):
        monkeypatch.setattr(module, "object_store", open_folder)
    return folder


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("stage", ["read", "write"])
def test_a_prefix_that_another_ingest_took_over_is_left_to_it(
    counted, h5ad, tmp_path, bucket, stage
):
    path, found = h5ad(counted()), []

    def take_over(at, *_):
        if at == stage and not found:
            found.append(ingest([path], "s3://bucket/a", seed=1))
            found.append(files(bucket))

    with pytest.raises(CellrayError, match="another ingest took over s3://bucket/a; let that one"):
        ingest([path], "s3://bucket/a", progress=take_over)
    assert found[0].digest == ingest([path], tmp_path / "alone", seed=1).digest
    assert files(bucket) == found[1]


def test_a_prefix_that_is_being_taken_over_is_not_cleaned_up(counted, h5ad, bucket):
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
    assert files(bucket) == left[0]
    assert ingest([path], "s3://bucket/a").n_cells == 40
    assert bucket / "a" / staging.MARK not in files(bucket)


def test_commit_asks_first_whether_the_place_is_ours(bucket):
    def lose():
        with staged("s3://bucket/a", overwrite=False) as (place, _, check):
            (bucket / "a" / staging.MARK).write_text("another's")
            staging.commit(place, {}, check)

    with pytest.raises(CellrayError, match="another ingest took over"):
        lose()
    assert list(files(bucket)) == [bucket / "a" / staging.MARK]


SLOW = """
import sys, time
from cellray.atlas.write import ingest
def wait(stage, done, total):
    if stage == "write":
        print("writing", flush=True)
        time.sleep(60)
ingest([sys.argv[1]], sys.argv[2], progress=wait)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_process_that_is_ended_leaves_nothing_that_opens(counted, h5ad, tmp_path, number):
    command = [sys.executable, "-c", SLOW, h5ad(counted()), tmp_path / "out"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout.readline() == b"writing\n"
        process.send_signal(number)
        assert process.wait(timeout=30) != 0
    left = [path for path in tmp_path.iterdir() if path.name != "a.h5ad"]
    if number != signal.SIGKILL:
        assert left == []
    for path in (tmp_path / "out", *left, *(path / "atlas" for path in left)):
        with pytest.raises(CellrayError):
            Atlas.open(str(path))
    assert ingest([h5ad(counted())], tmp_path / "out").n_cells == 40


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


def test_a_folder_that_may_not_be_written_is_named(counted, h5ad, tmp_path):
    if os.geteuid() == 0:
        out = "/proc/nothing/out"  # where even root may not write
    else:
        (tmp_path / "closed").mkdir(mode=0o500)
        out = tmp_path / "closed" / "out"
    with pytest.raises(CellrayError, match=r"cannot be written: .*; choose another --out"):
        ingest([h5ad(counted())], out)


def test_a_place_below_a_file_is_named(counted, h5ad, tmp_path):
    path = h5ad(counted())
    with pytest.raises(CellrayError, match=r"a\.h5ad cannot be written: Not a directory"):
        ingest([path], path / "out")
