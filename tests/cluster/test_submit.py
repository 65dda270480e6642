"""`calm submit` against a server that holds every request against Kubeflow's models."""

import json
import re
import ssl
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from calm_core.errors import CalmError, ConfigError
from pipelines.cluster import client, connection
from pipelines.cluster.client import connect
from pipelines.cluster.submit import Package, checked_root, submit, upload
from pipelines.compile import TRAIN_PIPELINE
from tests.cluster.conftest import Call
from tests.cluster.servers import Handler, Kubeflow, close_in_the_middle, refuse, running, stamp

ROOT = "s3://bucket/root"
SUBMIT = ("submit", "--source", "s3://bucket/texts/*.jsonl", "--pipeline-root", ROOT, "--profile", "tiny")


def test_a_run_is_started_once_uploaded(kubeflow: Kubeflow, call: Call) -> None:
    code, out, err = call(*SUBMIT, "--host", kubeflow.url, "--set", "calm.steps=77")
    assert (code, err) == (0, "")
    [run], [pipeline], [version] = kubeflow.runs, kubeflow.pipelines, kubeflow.versions
    assert pipeline["name"] == "calm-train"
    assert version["display_name"] == Package(TRAIN_PIPELINE).version
    assert re.fullmatch(r"calm-train-[0-9a-f]{12}", version["display_name"])
    assert run["pipeline_version_reference"]["pipeline_version_id"] == version["pipeline_version_id"]
    assert run["service_account"] == "calm-pipeline"
    parameters = run["runtime_config"]["parameters"]
    assert parameters["calm"]["steps"] == 77
    assert run["runtime_config"]["pipeline_root"] == ROOT
    assert parameters["plan_root"] == f"{ROOT}/calm/plans"
    assert parameters["checkpoint_root"] == f"{ROOT}/calm/checkpoints"
    assert f"{kubeflow.url}/#/runs/details/{run['run_id']}" in out


def test_the_second_submit_makes_a_run_and_nothing_else(kubeflow: Kubeflow, call: Call) -> None:
    for _ in range(2):
        assert call(*SUBMIT, "--host", kubeflow.url)[0] == 0
    sizes = [len(each) for each in (kubeflow.pipelines, kubeflow.versions, kubeflow.experiments, kubeflow.runs)]
    assert sizes == [1, 1, 1, 2]


def test_another_content_is_another_version_of_the_same_pipeline(kubeflow: Kubeflow, tmp_path: Path) -> None:
    cluster = connect(kubeflow.url)
    changed = tmp_path / "changed.yaml"
    changed.write_text(TRAIN_PIPELINE.read_text() + "\n# changed\n")
    assert upload(cluster, Package(TRAIN_PIPELINE))[0] == upload(cluster, Package(changed))[0]
    assert len(kubeflow.versions) == 2


def test_two_who_submit_at_once_share_pipeline_version_and_experiment(kubeflow: Kubeflow) -> None:
    """Both look before either has made anything: the slower one is told that it exists already."""
    both = threading.Barrier(2)
    waited: set[tuple[int, str]] = set()

    def meet(request: Handler) -> bool:
        key = (threading.get_ident(), request.place)
        if request.command == "GET" and "healthz" not in request.place and key not in waited:
            waited.add(key)
            kubeflow.lock.release()  # the server holds it while it looks for faults
            try:
                both.wait(timeout=20)
            finally:
                kubeflow.lock.acquire()
        return False

    clusters = [connect(kubeflow.url) for _ in range(2)]
    kubeflow.faults.append(meet)
    ids: list[str] = []
    package = Package(TRAIN_PIPELINE)
    values = {name: _value_of(spec) for name, spec in package.parameters.items()}
    threads = [
        threading.Thread(target=lambda cluster=cluster: ids.append(submit(cluster, package, values, ROOT)))
        for cluster in clusters
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sizes = [len(each) for each in (kubeflow.pipelines, kubeflow.versions, kubeflow.experiments, kubeflow.runs)]
    assert sizes == [1, 1, 1, 2]
    assert len(set(ids)) == 2
    conflicts = kubeflow.count("POST", "/apis/v2beta1/pipelines") + kubeflow.count("POST", ".*/upload_version")
    assert conflicts > 2, "they did not meet"


def _value_of(spec: dict[str, Any]) -> Any:
    return {"STRUCT": {}, "STRING": "", "NUMBER_INTEGER": 0, "BOOLEAN": False, "LIST": []}[spec["parameterType"]]


def test_with_users_all_is_made_in_the_namespace(call: Call) -> None:
    server = Kubeflow(users=True)
    with running(server):
        code, _, err = call(*SUBMIT, "--host", server.url)
        assert (code, len(err.splitlines())) == (2, 1)
        assert "--namespace" in err
        code, out, _ = call(*SUBMIT, "--host", server.url, "--namespace", "team")
        assert code == 0
        assert f"next: calm runs show {server.runs[0]['run_id']} --host {server.url} --namespace team" in out
    assert server.wrong == []
    assert server.pipelines[0]["namespace"] == server.experiments[0]["namespace"] == "team"


def test_the_same_name_of_another_pipeline_is_refused(kubeflow: Kubeflow, call: Call) -> None:
    call(*SUBMIT, "--host", kubeflow.url)
    spec = kubeflow.versions[0]["pipeline_spec"]
    spec.get("pipeline_spec", spec)["pipelineInfo"]["name"] = "theirs"
    code, _, err = call(*SUBMIT, "--host", kubeflow.url)
    assert (code, len(err.splitlines())) == (1, 1)
    assert "calm-train is there already and is another one (theirs)" in err


PLACES = {
    "no text": (("--set", "seed=1"), "data.sources (--source): is empty"),
    "a local source": (("--source", "texts/a.jsonl"), "data.sources (--source): texts/a.jsonl lies on this machine"),
    "a local tokenizer": (
        ("--source", "s3://b/a.jsonl", "--set", "tokenizer.source=my"),
        "tokenizer.source: my lies on",
    ),
    "a local root": (("--source", "s3://b/a.jsonl", "--pipeline-root", "out"), "--pipeline-root: out is a folder of"),
    "a file root": (("--source", "s3://b/a.jsonl", "--pipeline-root", "file:///out"), "is a folder of this machine"),
    "a root with a password": (
        ("--source", "s3://b/a.jsonl", "--pipeline-root", "s3://me:hunter2@bucket/x"),
        "--pipeline-root: a URL holds no password",
    ),
    **{
        f"a root {root}": (
            ("--source", "s3://b/a.jsonl", "--pipeline-root", root),
            f"does not take {root}; write s3://",
        )
        for root in (
            *("s3://b/{{x}}", "s3://b//x", "s3:///x", "s3://b/../x", "s3://b/x?region=r", "s3://b/x#y", "s3://b/$(X)"),
            *("S3://b/x", "s3a://b/x", "gs://b/x", "https://b/x"),
        )
    },
    "a long root": (("--source", "s3://b/a.jsonl", "--pipeline-root", f"s3://{'b' * 200}"), "has 205 characters"),
}


@pytest.mark.parametrize("name", PLACES)
def test_what_no_pod_sees_is_refused_before_anything_is_sent(name: str, kubeflow: Kubeflow, call: Call) -> None:
    options, says = PLACES[name]
    code, out, err = call("submit", "--profile", "tiny", "--host", kubeflow.url, *options)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert says in err
    assert "hunter2" not in err
    assert kubeflow.requests == []


def test_without_a_root_plans_and_checkpoints_lie_where_kubeflow_keeps_its_own(kubeflow: Kubeflow, call: Call) -> None:
    assert call("submit", "--source", "s3://b/a.jsonl", "--host", kubeflow.url)[0] == 0
    config = kubeflow.runs[0]["runtime_config"]
    assert "pipeline_root" not in config
    assert {"plan_root", "checkpoint_root"} & set(config["parameters"]) == set()


def test_a_tag_may_change_so_the_codes_version_takes_part(kubeflow: Kubeflow, call: Call) -> None:
    for image in ("registry/calm:1", f"registry/calm@sha256:{'0' * 64}"):
        assert call(*SUBMIT, "--host", kubeflow.url, "--set", f"cluster.image={image}")[0] == 0
    by_tag, by_digest = (each["runtime_config"]["parameters"] for each in kubeflow.runs)
    assert (by_tag["image"], "code_version" in by_tag) == ("registry/calm:1", True)
    assert "code_version" not in by_digest


def test_what_pods_get_comes_from_the_settings(kubeflow: Kubeflow, call: Call) -> None:
    options = ("--set", "cluster.accelerators=2", "--set", "cluster.credentials=ours")
    assert call(*SUBMIT, "--host", kubeflow.url, *options)[0] == 0
    parameters = kubeflow.runs[0]["runtime_config"]["parameters"]
    assert (parameters["accelerators"], parameters["credentials"]) == ("2", "ours")


def test_checked_root_takes_kubeflows_own() -> None:
    assert checked_root("minio://mlpipeline/private-artifacts/team/") == "minio://mlpipeline/private-artifacts/team"


def test_many_partitions_are_told_of_a_limit_of_kubeflow(kubeflow: Kubeflow, call: Call) -> None:
    assert call(*SUBMIT, "--host", kubeflow.url, "--set", "data.partitions=32")[2] == ""
    code, _, err = call(*SUBMIT, "--host", kubeflow.url, "--set", "data.partitions=33")
    assert (code, len(err.splitlines())) == (0, 1)
    assert err.startswith("data.partitions: 33 may be more than this Kubeflow keeps track of")
    many = [option for i in range(100) for option in ("--source", f"s3://bucket/{'x' * 60}-{i}.jsonl")]
    code, _, err = call(*SUBMIT, "--host", kubeflow.url, *many, "--set", "data.partitions=24")
    assert (code, len(err.splitlines())) == (0, 1)
    assert err.startswith("data.partitions: 24 may be more")


# --- what the server may do


def test_reads_are_tried_again_and_nothing_that_makes_something_is(kubeflow: Kubeflow, call: Call) -> None:
    for path, do in (
        ("/apis/v2beta1/experiments", refuse(500)),
        ("/apis/v2beta1/experiments", refuse(502)),
        ("/apis/v2beta1/experiments", refuse(429)),
        (".*/pipelines/names/.*", close_in_the_middle),
    ):
        kubeflow.fail("GET", path, do)
    assert call(*SUBMIT, "--host", kubeflow.url)[0] == 0
    kubeflow.fail("POST", "/apis/v2beta1/runs", refuse(503, "is busy"))
    before = kubeflow.count("POST", "/apis/v2beta1/runs")
    code, _, err = call(*SUBMIT, "--host", kubeflow.url)
    assert (code, len(err.splitlines())) == (1, 1)
    assert "it has failed (503: is busy); try again later (creating the run)" in err
    assert kubeflow.count("POST", "/apis/v2beta1/runs") == before + 1


def test_a_run_whose_creation_is_not_answered_may_be_there(kubeflow: Kubeflow, call: Call) -> None:
    kubeflow.fail("POST", "/apis/v2beta1/runs", close_in_the_middle)
    code, _, err = call(*SUBMIT, "--host", kubeflow.url)
    assert code == 1
    assert "broke off; it may have been done all the same: look before you do it again" in err


def test_an_upload_that_is_refused_may_be_for_want_of_a_right(kubeflow: Kubeflow, call: Call) -> None:
    """Kubeflow's upload answers 400 without a reason where it should answer 403."""
    kubeflow.fail("POST", ".*/upload_version", refuse(400, "Failed to create a pipeline version"))
    code, _, err = call(*SUBMIT, "--host", kubeflow.url)
    assert (code, len(err.splitlines())) == (1, 1)
    assert "(400: Failed to create a pipeline version) (uploading the pipeline); it says so too of whom" in err


def _html(request: Handler) -> None:
    request.give(200, b"<html>log in</html>", "text/html; charset=utf-8")


def _huge(request: Handler) -> None:
    request.give(200, b'{"experiments": [' + b" " * 2_000_000 + b"]}")


ANSWERS: dict[str, tuple[str, Any, int, str]] = {
    "an expired token": (
        "/apis/v2beta1/healthz",
        refuse(401),
        1,
        "the token or cookie is missing or has expired (401)",
    ),
    "a page to log in": ("/apis/v2beta1/healthz", _html, 1, "asks to log in, or is another service"),
    "a way to log in": (
        "/apis/v2beta1/healthz",
        lambda request: request.give(302, b"", Location="https://dex.example/auth?client_secret=abc"),
        1,
        "asks to log in; log in again",
    ),
    "another service": ("/apis/v2beta1/healthz", refuse(404), 1, "is not Kubeflow Pipelines; name the address"),
    "another service's JSON": (
        "/apis/v2beta1/healthz",
        lambda request: request.give(200, {"hello": 1}),
        1,
        "is not Kubeflow Pipelines",
    ),
    "text": ("/apis/v2beta1/healthz", lambda request: request.give(200, b"hello"), 1, "an answer is damaged"),
    "no rights": (
        "/apis/v2beta1/experiments",
        refuse(403, "User 'ann' is not authorized"),
        1,
        "no right to do this (403: User 'ann' is not authorized); ask for it, or check --namespace",
    ),
    "a wrong namespace": (
        "/apis/v2beta1/experiments",
        refuse(400, "Invalid input error: no such namespace"),
        1,
        "it refuses this (400: Invalid input error: no such namespace) (looking for the experiment)",
    ),
    "other types": (
        "/apis/v2beta1/experiments",
        lambda request: request.give(200, {"experiments": 7}),
        1,
        "an answer is damaged, or of a version that this SDK does not know (TypeError): Kubeflow 2.17.0, kfp 2.17",
    ),
    "no id": (
        "/apis/v2beta1/experiments",
        lambda request: request.give(200, {"experiments": [{"display_name": "calm"}]}),
        1,
        "an answer lacks an id",
    ),
    "a list without end": (
        "/apis/v2beta1/experiments",
        lambda request: request.give(200, {"experiments": [], "next_page_token": "again"}),
        1,
        "its list has no end",
    ),
    "an enormous answer": ("/apis/v2beta1/experiments", _huge, 1, "an answer is larger than 1 MiB; it is not read"),
    "an older Kubeflow": (
        "/apis/v2beta1/healthz",
        lambda request: request.give(200, {"tag_name": "2.5.0", "multi_user": False}),
        1,
        "is Kubeflow Pipelines 2.5.0; 2.16 or newer is needed",
    ),
    "a page without its server": (
        "/apis/v2beta1/healthz",
        lambda request: request.give(200, {"apiServerReady": False}),
        1,
        "Kubeflow's page answers, its API server does not",
    ),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_each_wrong_answer_is_one_line(
    name: str, kubeflow: Kubeflow, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "LARGEST_ANSWER", 1 << 20)
    path, do, exit_code, says = ANSWERS[name]
    kubeflow.fail("GET", path, do, times=1000)
    monkeypatch.setenv("KFP_EXISTING_TOKEN", "very-secret")
    code, _, err = call(*SUBMIT, "--host", kubeflow.url)
    assert (code, len(err.splitlines())) == (exit_code, 1), err
    assert says in err
    assert kubeflow.url in err
    assert "very-secret" not in err and "abc" not in err
    assert kubeflow.runs == []


def test_a_server_that_says_nothing_is_not_waited_for(
    kubeflow: Kubeflow, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_READ_SECONDS", 0.2)
    kubeflow.fail("GET", "/apis/v2beta1/healthz", lambda request: time.sleep(2), times=9)
    began = time.monotonic()
    code, _, err = call(*SUBMIT, "--host", kubeflow.url)
    assert time.monotonic() - began < 2
    assert (code, len(err.splitlines())) == (1, 1)
    assert "the answer did not come, or broke off" in err


HOSTS = {
    "away": ("http://127.0.0.1:9", 1, "nothing answers there"),
    "unknown": ("http://no-such-host.invalid", 1, "there is no host of this name"),
    "no address": ("http://", 2, "--host: http:// is no address"),
    "another scheme": ("ftp://kubeflow", 2, "--host: ftp://kubeflow is no address"),
    "a wrong port": ("http://kubeflow:99999", 2, "is no address"),
    "a password in it": ("https://me:hunter2@kubeflow", 2, "--host: an address holds no user or password"),
    "a token in it": ("https://kubeflow/?token=hunter2", 2, "--host: an address holds no user or password"),
}


@pytest.mark.parametrize("name", HOSTS)
def test_each_wrong_host_is_one_line(name: str, call: Call) -> None:
    host, exit_code, says = HOSTS[name]
    began = time.monotonic()
    code, out, err = call(*SUBMIT, "--host", host)
    assert (code, out, len(err.splitlines())) == (exit_code, "", 1), err
    assert says in err and "hunter2" not in err
    assert time.monotonic() - began < 15


def test_without_any_host_it_says_which_to_name(call: Call) -> None:
    code, out, err = call(*SUBMIT)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "--host: is missing, and neither a cluster nor kubectl's settings are here" in err


# --- logging in


def test_a_token_comes_from_the_environment(kubeflow: Kubeflow, monkeypatch: pytest.MonkeyPatch) -> None:
    kubeflow.token = "abc"
    monkeypatch.setenv("KFP_EXISTING_TOKEN", "abc\n")
    assert connect(kubeflow.url).version == "2.17.0"


def test_a_token_file_is_read_for_each_request(
    kubeflow: Kubeflow, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("old")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))
    kubeflow.token = "old"
    cluster = connect(kubeflow.url)
    kubeflow.token = "new"
    with pytest.raises(CalmError, match="has expired"):
        cluster.get_json("/apis/v2beta1/healthz")
    (tmp_path / "token").write_text("new\n")
    cluster.get_json("/apis/v2beta1/healthz")
    (tmp_path / "token").unlink()
    with pytest.raises(ConfigError, match="token: the token cannot be read: No such file"):
        cluster.get_json("/apis/v2beta1/healthz")


def test_cookies_come_from_the_environment_or_the_sdks_file(
    kubeflow: Kubeflow, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kubeflow.cookie = "authservice_session=abc"
    (tmp_path / "context.json").write_text(
        json.dumps({"namespace": "team", "client_authentication_cookie": "authservice_session=abc"})
    )
    assert connect(kubeflow.url).namespace == "team"
    (tmp_path / "context.json").write_text("{")
    with pytest.raises(ConfigError, match="is no JSON any more"):
        connect(kubeflow.url)
    (tmp_path / "context.json").unlink()
    with pytest.raises(CalmError, match="asks to log in"):
        connect(kubeflow.url)
    monkeypatch.setenv("KFP_COOKIES", "authservice_session=abc")
    assert connect(kubeflow.url).namespace == "kubeflow"


def test_a_token_that_no_header_carries_is_never_repeated(
    kubeflow: Kubeflow, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    for token in ("very-secret\nmore", "very-secret-ä"):
        monkeypatch.setenv("KFP_EXISTING_TOKEN", token)
        code, _, err = call(*SUBMIT, "--host", kubeflow.url)
        assert (code, len(err.splitlines())) == (2, 1)
        assert "KFP_EXISTING_TOKEN: holds signs that no token or cookie has" in err and "very-secret" not in err


def test_kubectls_settings_reach_it_without_a_host(
    kubeflow: Kubeflow, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = tmp_path / "kubeconfig"
    settings.write_text(
        f"""apiVersion: v1
kind: Config
current-context: here
contexts: [{{name: here, context: {{cluster: here, user: me}}}}]
clusters: [{{name: here, cluster: {{server: "{kubeflow.url}"}}}}]
users: [{{name: me, user: {{token: abc}}}}]
"""
    )
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(settings))
    seen: list[tuple[str, str | None]] = []

    def proxy(request: Handler) -> bool:
        seen.append((request.place, request.headers.get("Authorization")))
        request.give(200, {"tag_name": "2.17.0", "multi_user": False})
        return True

    kubeflow.faults.append(proxy)
    connect()
    path = "/api/v1/namespaces/kubeflow/services/ml-pipeline:http/proxy"
    assert [(place.replace("//", "/"), token) for place, token in seen] == [
        (f"{path}/apis/v2beta1/healthz", "Bearer abc")
    ]


def test_a_pods_service_account_reaches_it_without_a_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    server = Kubeflow(users=True)
    server.token = "of-the-pod"
    (tmp_path / "token").write_text("of-the-pod\n")
    (tmp_path / "namespace").write_text("team\n")
    monkeypatch.setattr("kubernetes.config.load_incluster_config", lambda: None)
    monkeypatch.setattr("kfp.client.Client._IN_CLUSTER_DNS_NAME", server.url.removeprefix("http://"))
    monkeypatch.setattr(client, "_NAMESPACE_FILE", tmp_path / "namespace")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))
    with running(server):
        cluster = connect()
        assert (cluster.namespace, cluster.options) == ("team", f"--host {server.url} --namespace team")
        server.token = "renewed"
        (tmp_path / "token").write_text("renewed")
        cluster.get_json("/apis/v2beta1/healthz")


def test_a_host_may_come_from_the_environment(kubeflow: Kubeflow, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", kubeflow.url)
    assert call(*SUBMIT)[0] == 0
    assert stamp(0) == "1970-01-01T00:00:00Z"


def test_no_secret_is_in_what_is_sent(kubeflow: Kubeflow, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {
        "AWS_SECRET_ACCESS_KEY": "secret-of-s3",
        "AWS_ACCESS_KEY_ID": "key-of-s3",
        "MLFLOW_TRACKING_PASSWORD": "secret-of-mlflow",
        "KFP_EXISTING_TOKEN": "secret-of-kubeflow",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    code, out, err = call(*SUBMIT, "--host", kubeflow.url)
    assert code == 0
    sent = b"".join(body + path.encode() for _, path, _, body in kubeflow.requests).decode(errors="replace") + out + err
    for value in secrets.values():
        assert value not in sent


def test_a_proxy_of_the_environment_is_used(kubeflow: Kubeflow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", kubeflow.url)
    monkeypatch.setenv("no_proxy", "elsewhere.invalid")
    assert connect("http://kubeflow.invalid").version == "2.17.0"
    with pytest.raises(CalmError, match="there is no host of this name"):
        connect("http://elsewhere.invalid")


def test_an_authority_of_ones_own_is_trusted_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    server = Kubeflow()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(_certificate(tmp_path / "server.pem"))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    url = server.url.replace("http:", "https:")
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    with running(server):
        code, _, err = call(*SUBMIT, "--host", url)
        assert (code, len(err.splitlines())) == (2, 1)
        assert "its certificate is not trusted" in err and "SSL_CERT_FILE" in err
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "server.pem"))
        assert connect(url).version == "2.17.0"


def _certificate(path: Path) -> Path:
    """A certificate for this machine, signed by itself, and its key."""
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "kubeflow")])
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(address, critical=False)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    key_text = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(certificate.public_bytes(encoding) + key_text)
    return path
