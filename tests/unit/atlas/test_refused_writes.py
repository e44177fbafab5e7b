"""Places that may not be read or written: one line that names the place and what was answered."""

import os
import re
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from cellray.atlas.splits import SplitSpec, store_split
from cellray.atlas.storage import check_writable
from cellray.atlas.store import Atlas
from cellray.atlas.write import append, ingest
from cellray.cli import main
from cellray.core.errors import CellrayError


class Bucket(BaseHTTPRequestHandler):
    """As much of S3 as obstore asks for; the server's `refused` gives a status, or 0."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body leave together, else the client waits 40 ms for the rest

    def log_message(self, *words):
        pass

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in {"ETag": '"x"', "Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)

    def handle_any(self):
        objects, url = self.server.objects, urlsplit(self.path)
        key, query = unquote(url.path), parse_qs(url.query, keep_blank_values=True)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status = self.server.refused(self.command, key)
        if status:
            self.answer(status)
        elif self.command == "PUT":
            objects[key] = body
            self.answer(200)
        elif "delete" in query:
            for name in re.findall(b"<Key>(.*?)</Key>", body):
                objects.pop(f"/bucket/{name.decode()}", None)
            gone = re.sub(b"<Delete.*?><Object>", b"<DeleteResult><Object>", body)
            gone = gone.replace(b"Object>", b"Deleted>").replace(b"</Delete>", b"</DeleteResult>")
            self.answer(200, gone)
        elif "list-type" in query:
            self.answer(200, self.listing(query.get("prefix", [""])[0]))
        elif key in objects:
            found, headers = objects[key], {"Last_Modified": "Wed, 01 Jan 2020 00:00:00 GMT"}
            asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
            if asked is None:
                self.answer(200, found, **headers)
                return
            low = int(asked[1]) if asked[1] else max(0, len(found) - int(asked[2]))
            high = min(len(found), int(asked[2]) + 1) if asked[1] else len(found)
            place = f"bytes {low}-{high - 1}/{len(found)}"
            self.answer(206, found[low:high], Content_Range=place, **headers)
        else:
            self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")

    def listing(self, prefix):
        items = "".join(
            f"<Contents><Key>{key[8:]}</Key><Size>{len(body)}</Size><ETag>x</ETag>"
            "<LastModified>2020-01-01T00:00:00.000Z</LastModified></Contents>"
            for key, body in sorted(self.server.objects.items())
            if key.startswith(f"/bucket/{prefix}")
        )
        text = f"<ListBucketResult><IsTruncated>false</IsTruncated>{items}</ListBucketResult>"
        return text.encode()

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any  # noqa: N815 - http.server's names


@pytest.fixture
def server(monkeypatch, tmp_path):
    """An object store with the bucket 'bucket'."""
    found = ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
    found.objects, found.refused = {}, lambda method, key: 0
    thread = threading.Thread(target=found.serve_forever, args=[0.02], daemon=True)
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{found.server_port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "name")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "word")
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    monkeypatch.chdir(tmp_path)
    yield found
    found.shutdown()
    found.server_close()
    thread.join()


WORDS = {
    405: "refuses to be written: 405 Method Not Allowed; check AWS_ENDPOINT_URL",
    403: "refuses these credentials: 403 Forbidden; check AWS_ACCESS_KEY_ID",
}


@pytest.mark.parametrize("status", WORDS)
@pytest.mark.parametrize("key", ["", "/X/", "/obs/kind/c", "/var/", "zarr.json"])
def test_an_object_store_that_takes_no_objects_says_so(
    counted, h5ad, server, capfd, status, key, tmp_path
):
    path = str(h5ad(counted()))
    server.refused = lambda method, name: status if method == "PUT" and key in name else 0
    assert main(["ingest", path, "--out", "s3://bucket/a"]) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if "/40 100%" not in line]
    assert len(lines) == 1
    assert re.match(rf"error: s3://bucket/a.* {WORDS[status]}", lines[0])
    if not key:  # nothing was read, and nothing is kept
        assert server.objects == {}
        assert list((tmp_path / ".cellray" / "ingest").iterdir()) == []
    server.refused = lambda method, name: 0
    assert ingest([path], "s3://bucket/a").n_cells == 40


@pytest.mark.parametrize("status", WORDS)
@pytest.mark.parametrize("key", ["", "/uns/splits/held/c", "/uns/splits/held/codes/c/0"])
def test_an_atlas_in_a_closed_bucket_is_not_split_and_not_added_to(
    counted, h5ad, server, capfd, status, key
):
    ingest([h5ad(counted())], "s3://bucket/a")
    server.refused = lambda method, name: status if method == "PUT" and key in name else 0
    assert main(["split", "s3://bucket/a", "--name", "held"]) == 2
    assert re.fullmatch(rf"error: s3://bucket/a.* {WORDS[status]}.*\n", capfd.readouterr().err)
    if not key:
        with pytest.raises(CellrayError, match=WORDS[status]):
            append([h5ad(counted(seed=1), "b.h5ad")], "s3://bucket/a")
    server.refused = lambda method, name: 0
    assert Atlas.open("s3://bucket/a").manifest.splits == {}
    store_split(Atlas.open("s3://bucket/a"), "held", SplitSpec())
    assert "held" in Atlas.open("s3://bucket/a").manifest.splits


def test_a_place_in_a_bucket_is_tried_before_it_is_used(server):
    check_writable("s3://bucket/runs")
    assert server.objects == {}
    for status, words in WORDS.items():
        server.refused = lambda method, name, status=status: status if method == "PUT" else 0
        with pytest.raises(CellrayError, match=rf"s3://bucket/runs.* {words}"):
            check_writable("s3://bucket/runs")


def test_parents_that_may_not_be_seen_are_passed_over(counted, h5ad, server):
    path = h5ad(counted())
    server.refused = lambda method, key: 403 if key == "/bucket/zarr.json" else 0
    assert ingest([path], "s3://bucket/mine/a").n_cells == 40


def test_a_folder_is_tried_before_it_is_used(tmp_path):
    check_writable(str(tmp_path / "deep" / "down"))
    assert list((tmp_path / "deep" / "down").iterdir()) == []
    (tmp_path / "file").write_text("kept")
    for place in ("file", "file/below"):
        with pytest.raises(CellrayError, match=rf"{place} cannot be written: .*; choose another"):
            check_writable(str(tmp_path / place))


@pytest.fixture
def closed(counted):
    """A folder that anyone may enter, in which the test is nobody in particular."""
    with tempfile.TemporaryDirectory(prefix="cellray-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        counted().write_h5ad(folder / "a.h5ad")
        counted(seed=1).write_h5ad(folder / "b.h5ad")
        ingest([folder / "a.h5ad"], folder / "atlas")
        (folder / "genes.txt").write_text("g1\n")
        (folder / "genes.txt").chmod(0)
        (folder / "none").mkdir(mode=0)
        (folder / "read").mkdir(mode=0o555)
        for path in (folder / "atlas").rglob("*"):
            path.chmod(0o555 if path.is_dir() else 0o444)
        (folder / "atlas").chmod(0o555)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            yield folder
        finally:
            if root:
                os.seteuid(0)
            for path in [folder, *folder.rglob("*")]:
                path.chmod(0o755)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("split {}/atlas --name held", "atlas/uns"),
        ("ingest {}/b.h5ad --out {}/atlas --append", "atlas/parts"),
        ("inspect {}/none", "none/zarr.json"),
        ("inspect {}/none/atlas", "none/atlas"),
        ("ingest {}/none/a.h5ad --out {}/new", "none/a.h5ad"),
        ("ingest {}/a.h5ad --out {}/new --genes {}/genes.txt", "genes.txt"),
        ("ingest {}/a.h5ad --out {}/new --genes {}/none/genes.txt", "none/genes.txt"),
        ("ingest {}/a.h5ad --out {}/none/new", "none/new"),
    ],
)
def test_what_a_user_may_not_read_or_write_is_named(closed, words, named, capfd):
    assert main(words.format(*3 * [closed]).split()) == 2
    line = f"error: {closed}/{named} may not be read or written; check its permissions\n"
    assert capfd.readouterr().err == line


def test_a_folder_of_checkpoints_that_may_not_be_written_is_named(closed):
    for place in ("read", "read/below", "none/below"):
        with pytest.raises(CellrayError, match=rf"{place} cannot be written: Permission denied"):
            check_writable(str(closed / place))
