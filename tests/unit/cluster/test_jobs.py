"""Where jobs go, what they are told, and what is said of what answers there."""

import json
import socket

import pytest
import ray
from tests.unit.cluster.answering import answering

import cellray
from cellray.cli import main, user_error
from cellray.cluster import follow, jobs, settings
from cellray.cluster.address import Address, ClusterError, find_address
from cellray.cluster.jobs import Jobs, Request
from cellray.cluster.refusals import last_line
from cellray.cluster.submit import job_id
from cellray.core.errors import CellrayError


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """A working folder without a cluster, and an environment that names none."""
    monkeypatch.chdir(tmp_path)
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_DASHBOARD_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def local(alone):
    """What ``cellray cluster up`` leaves."""
    folder = alone / ".cellray" / "cluster"
    folder.mkdir(parents=True)
    (folder / "token").write_text("t0ken\n")
    state = {
        "dashboard": "http://127.0.0.1:8265",
        "mlflow": "http://127.0.0.1:5000",
        "token": str(folder / "token"),
    }
    (folder / "state.json").write_text(json.dumps(state))
    return folder


def test_an_address_is_taken_from_the_first_that_names_one(monkeypatch, local):
    assert find_address().url == "http://127.0.0.1:8265"
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")  # where drivers join, not where jobs go
    assert find_address().url == "http://127.0.0.1:8265"
    monkeypatch.setenv("RAY_ADDRESS", "https://ray:8265/")
    assert find_address().url == "https://ray:8265"
    monkeypatch.setenv("RAY_DASHBOARD_ADDRESS", "dashboard:8265")
    assert find_address().url == "http://dashboard:8265"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://server:8265")
    assert find_address().url == "http://server:8265"
    assert find_address("http://told:8265").url == "http://told:8265"


def test_a_local_cluster_lets_one_in_and_names_its_mlflow(local):
    names = ("127.0.0.1:8265", "http://localhost:8265", "http://LOCALHOST:8265/", "[::1]:8265")
    for found in (find_address(), *map(find_address, names)):
        assert found.url == "http://127.0.0.1:8265"
        assert found.headers == {"Authorization": "Bearer t0ken"}
        assert found.env == {"MLFLOW_TRACKING_URI": "http://127.0.0.1:5000"}
        assert "t0ken" not in repr(found)
    for other in ("other:8265", "localhost:8266", "https://localhost:8265", "localhost:8265/x"):
        assert find_address(other).headers == {}


def test_a_token_that_the_environment_gives_comes_before_the_local_clusters_own(
    local, alone, monkeypatch, capfd
):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "mine")
    assert find_address().headers == {"Authorization": "Bearer mine"}
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(alone / "other"))
    with pytest.raises(CellrayError, match=r"RAY_AUTH_TOKEN_PATH names .*other, which cannot be"):
        find_address()
    assert find_address("other:8265").token is None
    (alone / "other").write_text("theirs\n")
    assert find_address("localhost:8265").headers == {"Authorization": "Bearer theirs"}
    assert find_address("other:8265").headers == {}  # Ray's client takes it from there itself
    with answering(403, "Forbidden") as url:
        state = json.loads((local / "state.json").read_text()) | {"dashboard": url}
        (local / "state.json").write_text(json.dumps(state))
        assert main(["jobs", "list"]) == 2
    assert "refuses the token of RAY_AUTH_TOKEN_PATH; unset it" in capfd.readouterr().err


@pytest.mark.parametrize("given", ["http://", "ftp://x", "http://x:port", "http://x:99999"])
def test_what_is_no_address_is_refused(given):
    with pytest.raises(CellrayError, match="no address of a Ray dashboard"):
        find_address(given)


def test_no_password_stands_in_an_address():
    with pytest.raises(CellrayError, match="holds a user or a password") as error:
        find_address("http://ann:secret@head:8265")
    assert "secret" not in str(error.value)


def test_without_a_cluster_it_is_said_what_to_give(capfd):
    assert main(["jobs", "list"]) == 2
    assert "give --address http://HOST:8265" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (200, "<html>", "what answers there is no Ray dashboard"),
        (404, "gone", "what answers there is no Ray dashboard"),
        (200, '{"ray_version": "2.9.1"}', f"runs Ray 2.9.1, and this is {ray.__version__}"),
        (401, "Unauthorized", "wants a token, and none was sent; set RAY_AUTH_MODE=token"),
        (403, "Forbidden", "refuses the token"),
    ],
)
def test_what_is_no_cluster_of_ours_is_said_in_a_line(status, body, said, capfd):
    with answering(status, body) as url:
        assert main(["jobs", "list", "--address", url]) == 2
    line = capfd.readouterr().err.strip()
    assert said in line
    assert "\n" not in line


def test_the_given_address_counts_and_not_the_environments(monkeypatch, capfd):
    """Ray's own client would ask the environment's."""
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    with answering(200, '{"ray_version": "2.9.1"}') as url:
        assert main(["jobs", "list", "--address", url]) == 2
    assert f"the cluster at {url} runs Ray 2.9.1" in capfd.readouterr().err


def test_what_a_cluster_refuses_is_said_in_a_line():
    """Ray's head answers with a traceback; its last line says why."""
    said = 'Traceback (most recent call last):\n  File "x"\nValueError: no such package: a\n'
    assert last_line(RuntimeError(f"Request failed with status code 500: {said}.")) == (
        "ValueError: no such package: a"
    )
    assert last_line(RuntimeError()) == "RuntimeError"
    with answering(200, f'{{"ray_version": "{ray.__version__}"}}', then=(500, said)) as url:
        found = Jobs(find_address(url))
        with pytest.raises(ClusterError) as error:
            found.list()
    assert error.value.what == f"the cluster at {url} refuses this: ValueError: no such package: a"


def test_a_job_that_is_not_there_to_be_stopped_is_said(capfd, monkeypatch):
    """Ray answers so before it has begun a job, and when it has lost one and does not know yet."""
    monkeypatch.setattr(follow, "QUEUED_SECONDS", 0.1)
    job = {"type": "SUBMISSION", "submission_id": "a", "status": "RUNNING", "entrypoint": "x"}
    paths = {
        "/api/jobs/": json.dumps([job]),
        "/api/jobs/a": json.dumps(job),
        "/api/jobs/a/stop": '{"stopped": false}',
    }
    with answering(200, f'{{"ray_version": "{ray.__version__}"}}', by_path=paths) as url:
        assert main(["jobs", "stop", "a", "--address", url]) == 2
    said = capfd.readouterr().err
    assert (
        "error: job a is running, and nothing of it is there to be stopped; stop it again" in said
    )
    assert "stopping" not in said


def test_nothing_listens(capfd):
    assert main(["jobs", "list", "--address", "http://127.0.0.1:1", "--json"]) == 2
    said = capfd.readouterr()
    assert "nothing listens there" in said.err
    assert json.loads(said.out)["mend"].startswith("check the address")


def test_resources_are_those_of_rays_client():
    given = ["CPU=1,GPU=2", "memory=4GiB", "special=0.5", "ray.io/zone=a"]
    assert settings.resources(given) == {
        "entrypoint_num_cpus": 1.0,
        "entrypoint_num_gpus": 2.0,
        "entrypoint_memory": 4 * 2**30,
        "entrypoint_resources": {"special": 0.5},
        "entrypoint_label_selector": {"ray.io/zone": "a"},
    }
    assert settings.resources(["memory=500MB"]) == {"entrypoint_memory": 500_000_000}
    assert settings.resources([]) == {}
    for wrong in ("CPU=-1", "CPU=inf", "GPU=nan", "seat=-2", "memory=", "memory=-1", "memory=4 QB"):
        name = wrong.partition("=")[0]
        with pytest.raises(CellrayError, match=f"--resources {wrong} is no amount of {name}"):
            settings.resources([wrong])
    for wrong in ("CPU", "=3"):
        with pytest.raises(CellrayError, match=f"--resources {wrong} is no KEY=VALUE"):
            settings.resources([wrong])


@pytest.mark.parametrize(
    "given", [["--pip", "https://ann:hunter2@index/x.whl"], ["--job-name", "s3://a:hunter2@b/c"]]
)
def test_no_password_stands_in_what_the_cluster_shows(given, capfd):
    assert main(["submit", "inspect", "s3://b/a", *given, "--address", "http://127.0.0.1:1"]) == 2
    said = capfd.readouterr().err
    assert "holds a password" in said
    assert "hunter2" not in said


@pytest.mark.parametrize(
    "name",
    [
        *("AWS_ACCESS_KEY_ID", "RAY_AUTH_TOKEN", "MLFLOW_TRACKING_PASSWORD", "my_secret"),
        *("PGPASSWORD", "MYSQL_PWD", "APIKEY", "OPENAI_APIKEY", "GITHUB_PAT", "AUTHTOKEN"),
        *("OPENAI_API_KEY", "openaiApiKey", "API_KEYS", "GITHUBTOKEN", "PGPASS", "SSHPASS"),
        *("DB_PASS", "PASSWD", "GPG_PASSPHRASE", "CLIENTSECRET", "APP_SECRETS", "API_KEY2"),
        *("TS_AUTHKEY", "ACCOUNTKEY", "SSH_PRIVATEKEY", "ACCESS_JWT", "GOOGLE_CREDENTIALS"),
    ],
)
def test_names_of_secrets_are_refused(name):
    with pytest.raises(CellrayError, match="in the environment of the cluster's nodes"):
        settings.environment([f"{name}=x"])


def test_other_variables_are_passed_on():
    given = ["TOKENIZERS_PARALLELISM=false", "AWS_ENDPOINT_URL=http://s3:9000", "A=b=c", "E="]
    given += [
        f"{name}=1"
        for name in (
            *("PATH", "PWD", "OLDPWD", "PYTHONPATH", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"),
            *("KEYBOARD", "MONKEY", "TURKEY", "COMPAT", "PATTERN", "PATIENCE", "SPATIAL", "PATCH"),
            *("BYPASS", "COMPASS", "PASSES", "MAX_TOKENS", "SECRETARY", "SSH_AUTH_SOCK"),
            *("CELLRAY_LOG", "CELLRAY_GIT_COMMIT", "CELLRAY_WANTED_VERSION", "RAY_AUTH_MODE"),
            *("AWS_PROFILE", "AWS_REGION", "HF_HOME", "NCCL_DEBUG", "LC_ALL", "KEYS_SEEN"),
        )
    ]
    assert settings.environment(given) == dict(word.split("=", 1) for word in given)


def test_where_mlflow_is_must_be_seen_by_the_cluster(monkeypatch, alone):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert settings.tracking({}, {}, here=True) == f"sqlite:///{alone}/.cellray/mlflow.db"
    assert settings.tracking({}, {}, here=False) is None
    loopback = ("127.0.0.1:5000", "localhost:5000", "[::1]:5000", "127.8.8.8", "localhost/x")
    for local in ("sqlite:///mlflow.db", "runs", *(f"http://{one}" for one in loopback)):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", local)
        with pytest.raises(CellrayError, match="on this machine and not on the cluster's") as error:
            settings.tracking({}, {}, here=False)
        assert "give --env MLFLOW_TRACKING_URI=http://HOST:5000" in error.value.mend
        # What is typed for the nodes is theirs to understand; an empty one leaves it to them.
        assert settings.tracking({"MLFLOW_TRACKING_URI": ""}, {}, here=False) is None
        told = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:5000"}
        assert settings.tracking(told, {}, here=False) == "http://127.0.0.1:5000"
        assert settings.tracking({"MLFLOW_TRACKING_URI": ""}, told, here=True) == (
            "http://127.0.0.1:5000"
        )
    assert settings.tracking({}, {}, here=True) == "http://localhost/x"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    env = {"MLFLOW_TRACKING_URI": "http://mlflow:5000"}
    assert settings.tracking(env, {}, here=False) == "http://mlflow:5000"
    assert settings.tracking({}, {**env}, here=False) == "http://mlflow:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mine:5000")
    assert settings.tracking({}, {**env}, here=False) == "http://mine:5000"
    assert settings.tracking(env, {}, here=False) == "http://mlflow:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:secret@mlflow:5000")
    with pytest.raises(CellrayError, match="holds a password"):
        settings.tracking({}, {}, here=True)


def test_without_an_address_of_mlflow_the_nodes_own_counts(monkeypatch, capfd):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    words = ["submit", "inspect", "s3://b/a", "--dry-run", "--no-code", "--json"]
    with answering(200, f'{{"ray_version": "{ray.__version__}"}}') as url:
        assert main([*words, "--address", url]) == 0
        said = capfd.readouterr()
        assert json.loads(said.out)["env"] == {}
        assert json.loads(said.out)["mlflow"] == "the cluster's own"
        assert "MLFLOW_TRACKING_URI is not set" in said.err
        given = "MLFLOW_TRACKING_URI=http://mlflow:5000"
        assert main([*words, "--address", url, "--env", given]) == 0
    said = capfd.readouterr()
    assert json.loads(said.out)["env"] == dict([given.split("=")])
    assert "is not set" not in said.err


def test_a_loopback_mlflow_of_this_shell_is_not_sent_elsewhere(monkeypatch, capfd):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    words = ["submit", "inspect", "s3://b/a", "--dry-run", "--no-code", "--json"]
    with answering(200, f'{{"ray_version": "{ray.__version__}"}}') as url:
        assert main([*words, "--address", url]) == 2
        assert "or --env MLFLOW_TRACKING_URI= to take theirs" in capfd.readouterr().err
        assert main([*words, "--address", url, "--env", "MLFLOW_TRACKING_URI="]) == 0
    assert json.loads(capfd.readouterr().out)["env"] == {}


def test_ids_are_readable_and_unique():
    made = {job_id("evaluate", "pbmc@champion / x") for _ in range(20)}
    assert len(made) == 20
    for one in made:
        assert one.startswith("evaluate-pbmc-champion-x-20")
    assert job_id("inspect", "").count("-") == 3


def test_an_image_of_another_version_refuses_what_was_checked_by_this_one(monkeypatch, capfd):
    monkeypatch.setenv("CELLRAY_WANTED_VERSION", "9.9.9")
    assert main(["--version"]) == 2
    assert "submitted by 9.9.9; leave out --no-code" in capfd.readouterr().err
    monkeypatch.setenv("CELLRAY_WANTED_VERSION", cellray.__version__)
    assert main(["--version"]) == 0


def test_a_module_that_is_absent_is_said_with_how_to_bring_it():
    found = user_error(ModuleNotFoundError("No module named 'scvi'", name="scvi"))
    assert "the module scvi is not installed where this ran" in str(found)
    for bug in ("cellray", "cellray.nosuch", "ray.nosuch", "json"):
        assert user_error(ModuleNotFoundError(bug, name=bug)) is None


def test_a_cluster_whose_nodes_have_just_started_is_asked_again(monkeypatch, caplog):
    taken = (200, '{"submission_id": "a", "job_id": "a"}')
    waits = (500, "No available agent to submit job, please try again later.")
    version = {"/api/version": f'{{"ray_version": "{ray.__version__}"}}'}
    with answering(*waits, then=taken, by_path=version) as url:
        assert Jobs(Address(url, "test")).submit(Request("a", "true", {})) == "a"
    assert caplog.messages == [f"no node of {url} takes jobs yet; trying for a minute"]
    monkeypatch.setattr(jobs, "STARTING", 0.0)
    with (
        answering(*waits, by_path=version) as url,
        pytest.raises(ClusterError, match=r"refuses this: .*No available agent"),
    ):
        Jobs(Address(url, "test")).submit(Request("a", "true", {}))


@pytest.mark.parametrize(("hosts", "here"), [([socket.gethostname()], True), (["a", "b"], False)])
def test_a_head_that_does_not_know_its_nodes_yet_is_asked_again(hosts, here):
    none, some = (json.dumps({"data": {"hostNameList": names}}) for names in ([], hosts))
    version = {"/api/version": f'{{"ray_version": "{ray.__version__}"}}'}
    with answering(200, none, then=(200, some), by_path=version) as url:
        assert Jobs(Address(url, "test")).is_here() is here
