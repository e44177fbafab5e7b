"""`cellray doctor` beside a real object store, a real cluster and a real MLflow server."""

import pytest
from tests.integration.mlflow_server import start_server

from cellray import doctor_services


def test_a_bucket_is_written_read_and_emptied(s3):
    assert doctor_services.s3_credentials().state == "ok"
    bucket = s3.bucket()
    found = doctor_services.s3_round_trip(f"s3://{bucket}/path")
    assert (found.state, found.mend) == ("ok", "")
    assert s3.keys(bucket) == []


def test_a_wrong_secret_and_an_absent_bucket_are_told(s3, monkeypatch):
    absent = doctor_services.s3_round_trip("s3://absent/path")
    assert absent.state == "fail"
    assert "bucket 'absent' does not exist" in absent.found
    bucket = s3.bucket()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    found = doctor_services.s3_credentials()
    assert found.state == "fail"
    assert "refuses these credentials: SignatureDoesNotMatch" in found.found
    assert "AWS_SECRET_ACCESS_KEY" in found.mend
    refused = doctor_services.s3_round_trip(f"s3://{bucket}/path")
    assert refused.state == "fail"
    assert "refuses these credentials" in refused.found


@pytest.mark.parametrize("door", ["dashboard", "address"])
def test_a_cluster_is_joined_and_a_wrong_token_told(door, ray_cluster, tmp_path, monkeypatch):
    for name, value in ray_cluster.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RAY_ADDRESS", getattr(ray_cluster, door))
    monkeypatch.setattr(doctor_services, "PATIENCE", 200.0)  # of a busy machine
    found = doctor_services.ray()
    assert found.state == "ok", found
    assert ("takes jobs" if door == "dashboard" else "1 nodes, 2 CPUs") in found.found
    (tmp_path / "token").write_text("0" * 64)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    refused = doctor_services.ray()
    assert refused.state == "fail"
    assert "RAY_AUTH_TOKEN" in refused.mend
    # Where drivers join, Ray says no more than that it could not connect.
    assert ("refuses the token" if door == "dashboard" else "Failed to connect") in refused.found


def test_a_server_is_asked_for_its_version(tmp_path, monkeypatch):
    server = start_server(tmp_path)
    try:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
        found = doctor_services.mlflow()
    finally:
        server.stop()
    assert found.state == "ok", found
    assert f"{server.url} (MLflow 3." in found.found
