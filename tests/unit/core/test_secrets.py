from urllib.error import URLError

import pytest

from cellray.core.secrets import first_line, scrub


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://bob:s3cret@host:5000/a", "http://***@host:5000/a"),
        ("postgresql//bob:s3cret@db", "postgresql//***@db"),
        ("at 'mysql://bob:s3cret@db/x': no", "at 'mysql://***@db/x': no"),
        ("one http://bob:s3cret@a two http://token@b", "one http://***@a two http://***@b"),
        ("postgresql://bob:s3/cr@et@db/x", "postgresql://***@db/x"),
        ("http://host:5000/models@champion", "http://host:5000/models@champion"),
        ("s3://bucket/a@b and models:/m@champion", "s3://bucket/a@b and models:/m@champion"),
        ("sqlite:////data/.cellray/mlflow.db", "sqlite:////data/.cellray/mlflow.db"),
    ],
)
def test_scrub_hides_credentials_and_nothing_else(text, shown):
    assert scrub(text) == shown


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(), "OSError"),
        (ValueError("\nsecond"), "second"),
        (RuntimeError("one\ntwo"), "one"),
        (URLError(ConnectionRefusedError(111, "Connection refused")), "Connection refused"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (
            RuntimeError(
                "API request to http://h:5/a failed with exception HTTPConnectionPool(host='h', "
                "port=5): Max retries exceeded with url: /a (Caused by NewConnectionError("
                "\"HTTPConnection(host='h', port=5): Failed to establish a new connection: "
                '[Errno 111] Connection refused"))'
            ),
            "API request to http://h:5/a failed with exception cannot connect to h:5: Connection "
            "refused",
        ),
        (
            RuntimeError(
                "aiohttp.client_exceptions.ClientConnectorError: Cannot connect to host h:8265 "
                "ssl:default [Connect call failed ('127.0.0.1', 8265)]"
            ),
            "cannot connect to h:8265",
        ),
        (RuntimeError("x" * 190 + " http://bob:s3cret@host/"), "x" * 190 + " http://**"),
    ],
)
def test_first_line_of_an_error(error, line):
    assert first_line(error) == line
