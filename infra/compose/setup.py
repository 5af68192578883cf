"""What the stack of ``infra/compose.yaml`` needs once before its servers start. Runs in the image of the tasks.

::

    setup.py secrets          refuse empty secrets; put what tasks need into their volume, with a signing key
    setup.py buckets NAME…    create the buckets
    setup.py users URL        create, in MLflow, the account that tasks log in with

Everything can be repeated. Nothing prints a secret.
"""

import base64
import configparser
import json
import os
import re
import sys
import urllib.error
import urllib.request
from pathlib import Path

import boto3

from stillhouse.promotion.signing import generate_key

SECRETS = Path("/run/secrets")
FOR_TASKS = Path("/run/stillhouse")
TASK_FILES = {"s3-stillhouse": "s3", "mlflow-credentials": "credentials", "pip.conf": "pip.conf", "ca.pem": "ca.pem"}
OPTIONAL = {"pip.conf", "ca.pem"}
EMPTY = re.compile(r'^\s*\w+\s*=\s*$|""', re.MULTILINE)
"""A setting without a value, in the forms that the secrets have: ``name = value`` and JSON."""


def empty_secrets(folder: Path) -> list[str]:
    """Return the names of secrets that are empty, or that have a setting without a value."""
    needed = [file for file in sorted(folder.iterdir()) if file.name not in OPTIONAL]
    return [file.name for file in needed if not (text := file.read_text()).strip() or EMPTY.search(text)]


def prepare_secrets() -> None:
    """Refuse empty secrets, then put what tasks need into their volume, for their eyes only."""
    if empty := empty_secrets(SECRETS):
        sys.exit(f"empty: {', '.join(empty)}; infra/compose.sh up writes them anew")
    for name, target in TASK_FILES.items():
        put_privately(FOR_TASKS / target, (SECRETS / name).read_bytes())
    if not (FOR_TASKS / "signing-key.pem").exists():
        generate_key(FOR_TASKS / "signing-key.pem")


def put_privately(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all, that nobody else may read."""
    unfinished = path.with_suffix(".unfinished")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    unfinished.replace(path)


def create_buckets(names: list[str]) -> None:
    """Create the buckets that are not there."""
    s3 = boto3.client("s3")
    there = {bucket["Name"] for bucket in s3.list_buckets()["Buckets"]}
    for name in names:
        if name not in there:
            s3.create_bucket(Bucket=name)


def create_user(url: str) -> None:
    """Create the tasks' MLflow account, or give it today's password."""
    admin = _ini("mlflow-auth.ini")
    account = _ini("mlflow-credentials")
    user = {"username": account["mlflow_tracking_username"], "password": account["mlflow_tracking_password"]}
    login = f"{admin['admin_username']}:{admin['admin_password']}"
    try:
        _call("POST", f"{url}/api/2.0/mlflow/users/create", user, login)
    except urllib.error.HTTPError as error:
        if json.loads(error.read()).get("error_code") != "RESOURCE_ALREADY_EXISTS":
            raise
        _call("PATCH", f"{url}/api/2.0/mlflow/users/update-password", user, login)


def _ini(name: str) -> configparser.SectionProxy:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(SECRETS / name)
    return parser["mlflow"]


def _call(method: str, url: str, body: dict[str, str], login: str) -> None:
    basic = base64.b64encode(login.encode()).decode()
    headers = {"Authorization": f"Basic {basic}", "Content-Type": "application/json"}
    request = urllib.request.Request(url, data=json.dumps(body).encode(), headers=headers, method=method)
    urllib.request.urlopen(request, timeout=60).close()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["secrets"]:
            prepare_secrets()
        case ["buckets", *names]:
            create_buckets(names)
        case ["users", url]:
            create_user(url)
        case _:
            sys.exit(__doc__)
