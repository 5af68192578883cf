"""Secrets go by reference: planted ones turn up in nothing that a run writes, shows or stores.

A whole workflow, and runs that fail, with a real S3 server and a real MLflow server. The key of a teacher behind an API
is followed further in tests/teacher/api/test_client.py, images are searched in tests/images.
"""

import base64
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import pytest
from buckets import s3_settings
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from proxies import fault_proxy
from runs import TAKES_MINUTES
from servers import SECRET_KEY, Server, create_bucket, free_ports, mlflow_server
from tiny_bucket import write_workflow_in_bucket

from stillhouse.contract import ConfigurationError, ExitCode, StageRequest
from stillhouse.orchestration.deployment import Deployment
from stillhouse.promotion.registry import Registry
from stillhouse.store import open_store
from stillhouse.tracking import Tracking

USER = "planted-user"
SECRETS = {
    "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
    "MLFLOW_TRACKING_PASSWORD": "planted-mlflow-4b1d",
    "HF_TOKEN": "hf_plantedHubToken9c2e",
    "OPENAI_API_KEY": "sk-planted-teacher-77aa",
    "STILLHOUSE_TEACHER_KEY": "sk-planted-teacher-88bb",
    "AIRFLOW__CORE__FERNET_KEY": "planted-fernet-0f0f",
}
RUN = """
import logging, sys
from pathlib import Path
from stillhouse.contract import exit_code_of
from stillhouse.orchestration.deployment import Deployment
from stillhouse.orchestration.inprocess import run_workflow
from stillhouse.recipe import load_recipe
logging.basicConfig(level=logging.INFO)
logging.getLogger("stillhouse").setLevel(logging.DEBUG)
recipe, store, work, tracking = sys.argv[1:]
try:
    run_workflow(load_recipe(Path(recipe)), run_id=Path(work).name,
                 deployment=Deployment(store=store, work=Path(work), tracking_uri=tracking))
except Exception as error:
    logging.exception("the run failed")
    raise SystemExit(int(exit_code_of(error)))
"""


@dataclass(frozen=True, kw_only=True)
class Traces:
    """All that runs left behind, by place."""

    found: dict[str, bytes] = field(default_factory=dict)
    codes: dict[str, int] = field(default_factory=dict)

    def places_of(self, text: bytes) -> list[str]:
        return sorted(place for place, content in self.found.items() if text in content)

    def take_folder(self, folder: Path) -> None:
        self.found.update({str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()})


def forms(secret: str) -> Iterator[bytes]:
    """Yield what a secret looks like: plain, in a URL, in a header of basic authentication, in base64."""
    yield secret.encode()
    yield quote(secret, safe="").encode()
    yield base64.b64encode(f"{USER}:{secret}".encode())
    yield base64.b64encode(secret.encode())


@pytest.fixture(scope="module")
def traces(s3: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traces]:
    folder = tmp_path_factory.mktemp("secrets")
    private = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "key.pem").write_bytes(private)
    (folder / "key.pem").chmod(0o600)
    (folder / "mlflow").mkdir()
    create_bucket(s3.url, "secrets")
    environment = {
        **os.environ,
        **s3_settings(s3.url, folder),
        **SECRETS,
        "MLFLOW_TRACKING_USERNAME": USER,
        "STILLHOUSE_SIGNING_KEY": str(folder / "key.pem"),
        "XDG_CACHE_HOME": str(folder / "left" / "cache"),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, ["tasks", os.environ.get("PYTHONPATH")])),
    }
    left = Traces()
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        for name, value in s3_settings(s3.url, folder).items():
            patch.setenv(name, value)
        recipe = write_workflow_in_bucket(folder / "tiny", "s3://secrets/sources")
        mlflow = stack.enter_context(mlflow_server(folder / "mlflow"))
        locked = stack.enter_context(fault_proxy(mlflow.url, then={"status": 401}))

        def run(name: str, tracking: str, **changed: str) -> None:
            command = [sys.executable, "-c", RUN, str(recipe), "s3://secrets/store", str(folder / "left" / name)]
            done = subprocess.run(
                [*command, tracking], env=environment | changed, capture_output=True, timeout=TAKES_MINUTES
            )
            left.codes[name] = done.returncode
            left.found.update({f"{name}: output": done.stdout, f"{name}: log": done.stderr})

        run("wrong-s3", mlflow.url, AWS_SECRET_ACCESS_KEY="planted-wrong-5e5e")
        run("wrong-mlflow", locked.url)
        run("dead-mlflow", f"http://127.0.0.1:{free_ports(1)[0]}")
        run("dead-s3", mlflow.url, AWS_ENDPOINT_URL_S3=f"http://127.0.0.1:{free_ports(1)[0]}")
        run("whole", mlflow.url)
        store = open_store("s3://secrets")
        left.found.update({store.uri(key): store.get(key) for key in store.sizes()})
        left.take_folder(folder / "left")
        left.take_folder(folder / "mlflow")
        left.found["the signing key"] = private
        yield left


pytestmark = [pytest.mark.slow, pytest.mark.timeout(3 * TAKES_MINUTES)]


def test_the_runs_ended_as_they_should(traces: Traces) -> None:
    assert traces.codes == {
        "wrong-s3": ExitCode.NOT_PERMITTED,
        "wrong-mlflow": ExitCode.NOT_PERMITTED,
        "dead-mlflow": ExitCode.TRY_AGAIN,
        "dead-s3": ExitCode.TRY_AGAIN,
        "whole": ExitCode.OK,
    }, {place: text.decode()[-600:] for place, text in traces.found.items() if place.endswith(": log")}


def test_the_search_finds_what_is_there(traces: Traces) -> None:
    """Were it blind, the next test would say nothing."""
    places = traces.places_of(b"tiny-student")
    for kind in ("s3://secrets/store/", "mlflow.db", "/artifacts/"):
        assert any(kind in place for place in places), kind
    assert traces.places_of(b"the S3 server says") == ["wrong-s3: log"]


@pytest.mark.parametrize("name", [*SECRETS, "wrong"])
def test_no_planted_secret_turns_up(traces: Traces, name: str) -> None:
    secret = SECRETS.get(name, "planted-wrong-5e5e")
    assert {form: traces.places_of(form) for form in forms(secret) if traces.places_of(form)} == {}


def test_the_private_key_stays_where_it_is(traces: Traces) -> None:
    lines: list[bytes] = traces.found["the signing key"].splitlines()
    assert traces.places_of(lines[1]) == ["the signing key"]
    assert any(b"stillhouse.signature" in content for content in traces.found.values())


ADDRESSES: Mapping[str, str] = {
    "user and password": "http://ada:planted-pw@mlflow.example:5000",
    "password alone": "https://:planted-pw@mlflow.example",
    "token": "https://planted-pw@mlflow.example/path",
    "a database": "postgresql://ada:planted-pw@db.example/mlflow",
    "not an address": "http://ada:planted-pw@[mlflow",
}


TAKERS: Mapping[str, Callable[[str], object]] = {
    "tracking": lambda uri: Tracking(uri, "any"),
    "registry": Registry,
    "deployment": lambda uri: Deployment(store="s3://bucket", work=Path("/work"), tracking_uri=uri),
    "page": lambda uri: Deployment(store="s3://bucket", work=Path("/work"), tracking_page=uri),
    "request": lambda uri: StageRequest(
        stage="permit", run_id="r", task_id="permit", recipe={}, store="s3://bucket", tracking_uri=uri
    ),
}


@pytest.mark.parametrize("address", ADDRESSES.values(), ids=ADDRESSES.keys())
@pytest.mark.parametrize("take", TAKERS.values(), ids=TAKERS.keys())
def test_an_address_with_a_password_is_refused(address: str, take: Callable[[str], object]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        take(address)
    assert "planted-pw" not in str(caught.value)
    assert "ada" not in str(caught.value)
