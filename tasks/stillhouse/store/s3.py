"""Objects in an S3 bucket, on AWS or any server that speaks its protocol."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config as ClientConfig
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ResponseStreamingError,
    SSOError,
)
from botocore.exceptions import ConnectionError as ServerConnectionError
from s3transfer.exceptions import RetriesExceededError, S3DownloadFailedError, S3ValidationError

from stillhouse.contract import (
    ConfigurationError,
    Conflict,
    IntegrityError,
    NotPermitted,
    StillhouseError,
    TryAgain,
    sha256_of_file,
)
from stillhouse.store.atomic import finish, os_errors_explained, unfinished_file
from stillhouse.store.naming import RESERVED, S3_SCHEME, check_key, check_prefix

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

logger = logging.getLogger(__name__)

Returned = TypeVar("Returned")

_TRANSFER = TransferConfig(multipart_threshold=16 << 20, multipart_chunksize=16 << 20, max_concurrency=4)
_READ_SECONDS = 20
_TRIES = 3
"""Of a transfer whose bytes arrive damaged or cut off. Requests that fail are tried again by boto3 itself."""
_DIGEST = "sha256"
"""Metadata of objects that came from files: of those that went in parts, the server keeps no digest of the whole."""
_DIFFERENT = "check the network, and remove the object if it stays so"
_MISSING = {"NoSuchKey", "404"}
_BUSY = {"SlowDown", "RequestTimeout", "OperationAborted", "ConditionalRequestConflict"}
_GARBLED = {"BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch", "IncompleteBody"}
_FULL = {"QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "InsufficientStorage"}
_FORBIDDEN = {"ExpiredToken", "InvalidToken", "TokenRefreshRequired", "InvalidAccessKeyId", "SignatureDoesNotMatch"}


class _Garbled(TryAgain):
    """Bytes were damaged or cut off on their way."""


class _Damaged(IntegrityError):
    """Bytes differ from their digest, on their way or at the server."""


_EXPLANATIONS: dict[type[Exception], tuple[type[StillhouseError], str]] = {
    FlexibleChecksumError: (_Damaged, f"the bytes differ from the checksum that the server keeps; {_DIFFERENT}"),
    S3DownloadFailedError: (_Garbled, "the object changed while it was read; run again"),
    S3ValidationError: (_Garbled, "the server sends another part than was asked for; run again"),
    IncompleteReadError: (_Garbled, "the answer breaks off; check the network and run again"),
    ResponseStreamingError: (_Garbled, "the answer breaks off; check the network and run again"),
    RetriesExceededError: (_Garbled, "the answer breaks off; check the network and run again"),
    NoCredentialsError: (NotPermitted, "{}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    PartialCredentialsError: (NotPermitted, "{}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    CredentialRetrievalError: (NotPermitted, "{}; renew the credentials"),
    SSOError: (NotPermitted, "{}; renew the credentials"),
    ServerConnectionError: (TryAgain, "the S3 server does not answer; check AWS_ENDPOINT_URL and the server"),
    HTTPClientError: (TryAgain, "the S3 server does not answer; check AWS_ENDPOINT_URL and the server"),
    KeyError: (ConfigurationError, "what answers is no S3 server; correct AWS_ENDPOINT_URL"),  # no ETag
    RecursionError: (ConfigurationError, "what answers is no S3 server; correct AWS_ENDPOINT_URL"),  # it redirects
    BotoCoreError: (ConfigurationError, "{}; check the AWS settings"),
    ValueError: (ConfigurationError, "{}; check the AWS settings"),
}
"""The first that fits counts."""


class S3Store:
    """An `ObjectStore` in a bucket. The version of an object is its ETag.

    Endpoint and credentials come from where boto3 looks for them: ``AWS_ENDPOINT_URL_S3`` or ``AWS_ENDPOINT_URL``,
    ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, the profile files, the instance's role. Every request is tried
    four times at most.

    Large files go in parts. A killed writer leaves its parts at the server, unseen but paid for: whoever writes the
    object again removes them. For objects that nobody writes again, give the bucket a lifecycle rule,
    ``AbortIncompleteMultipartUpload`` after some days.

    Args:
        root: ``s3://bucket`` or ``s3://bucket/prefix``.
    """

    def __init__(self, root: str) -> None:
        bucket, _, prefix = root.removeprefix(S3_SCHEME).rstrip("/").partition("/")
        if not root.startswith(S3_SCHEME) or not bucket:
            raise ConfigurationError(f"store {root}: expected s3://BUCKET or s3://BUCKET/PREFIX")
        self.root = f"{S3_SCHEME}{bucket}" + (f"/{check_key(prefix)}" if prefix else "")
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        with self._explained(self.root):
            self._client = _client(os.getpid(), tuple(sorted(i for i in os.environ.items() if i[0].startswith("AWS_"))))

    def uri(self, key: str) -> str:
        """Return the URI of ``key``."""
        return f"{self.root}/{check_key(key)}"

    def exists(self, key: str) -> bool:
        """Tell whether ``key`` holds an object."""
        try:
            with self._explained(self.uri(key)):
                self._client.head_object(Bucket=self._bucket, Key=self._key(key))
        except FileNotFoundError:
            return False
        return True

    def get(self, key: str) -> bytes:
        """Return the object's bytes."""
        return self.get_versioned(key)[0]

    def get_versioned(self, key: str) -> tuple[bytes, str]:
        """Return the object's bytes and the version to name in `put_if`."""
        return self._whole(key, lambda: self._read(key))

    def _read(self, key: str) -> tuple[bytes, str]:
        response = self._client.get_object(Bucket=self._bucket, Key=self._key(key), ChecksumMode="ENABLED")
        return response["Body"].read(), response["ETag"]

    def put(self, key: str, data: bytes) -> None:
        """Write or replace an object."""

        def write() -> str:
            return self._client.put_object(
                Bucket=self._bucket, Key=self._key(key), Body=data, ChecksumAlgorithm="SHA256"
            )["ETag"]

        self._whole(key, write)

    def put_if(self, key: str, data: bytes, *, version: str | None) -> str:
        """Write only if the object still has ``version``, or, for None, only if there is none."""
        condition: dict[str, Any] = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
        with self._explained(self.uri(key)):
            try:
                return self._client.put_object(
                    Bucket=self._bucket, Key=self._key(key), Body=data, ChecksumAlgorithm="SHA256", **condition
                )["ETag"]
            except ClientError as error:
                if _status(error) in (409, 412) and error.response["ResponseMetadata"].get("RetryAttempts"):
                    # The first try may have been carried out and its answer lost: then we met our own write.
                    found, etag = self.get_versioned(key)
                    if found == data:
                        return etag
                if _status(error) in (409, 412) or (version is not None and _code(error) in _MISSING):
                    raise Conflict(
                        f"{self.uri(key)}: somebody else wrote first; read it again and decide anew"
                    ) from None
                raise

    def put_file(self, key: str, path: Path) -> None:
        """Write or replace an object with the contents of a file, in parts if it is large."""
        with os_errors_explained(path):
            extra = {"ChecksumAlgorithm": "SHA256", "Metadata": {_DIGEST: sha256_of_file(path)}}
            if path.stat().st_size >= _TRANSFER.multipart_threshold:
                self._remove_leftovers(key)

            def send() -> None:
                with path.open("rb") as file:
                    self._client.upload_fileobj(file, self._bucket, self._key(key), ExtraArgs=extra, Config=_TRANSFER)

            self._whole(key, send)

    def get_file(self, key: str, path: Path) -> None:
        """Download an object to ``path``, whose folder exists; the file appears whole or not at all.

        Raises:
            IntegrityError: The bytes differ from the digest that came with them.
        """
        with os_errors_explained(path):
            self._whole(key, lambda: self._receive(key, path))

    def _receive(self, key: str, path: Path) -> None:
        with unfinished_file(path.parent) as (file, temporary):
            found = self._client.head_object(Bucket=self._bucket, Key=self._key(key))
            if found["ContentLength"] < _TRANSFER.multipart_threshold:
                file.write(self._read(key)[0])
            else:
                self._client.download_fileobj(self._bucket, self._key(key), file, Config=_TRANSFER)
            finish(file)
            digest = found["Metadata"].get(_DIGEST)
            whole = temporary.stat().st_size == found["ContentLength"]
            if not whole or (digest and sha256_of_file(temporary) != digest):
                raise _Damaged(f"{self.uri(key)}: the bytes differ from their digest; {_DIFFERENT}")
            temporary.replace(path)

    def listing(self, prefix: str = "") -> dict[str, tuple[int, str]]:
        """Return size in bytes and ETag of every object whose key starts with ``prefix``, sorted by key."""
        start = self._prefix + check_prefix(prefix)
        found: dict[str, tuple[int, str]] = {}
        with self._explained(f"{self.root}/{prefix}"):
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=start):
                for item in page.get("Contents", ()):
                    found[item["Key"].removeprefix(self._prefix)] = (item["Size"], item["ETag"])
        # Folder markers, which some tools and servers create, are no objects of ours.
        kept = {k: v for k, v in found.items() if not k.endswith("/") and k.partition("/")[0] != RESERVED}
        return dict(sorted(kept.items()))

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Return the size in bytes of every object whose key starts with ``prefix``, sorted by key."""
        return {key: size for key, (size, _) in self.listing(prefix).items()}

    def keys(self, prefix: str = "") -> list[str]:
        """List the keys that start with ``prefix``, sorted."""
        return list(self.listing(prefix))

    def delete(self, key: str) -> None:
        """Remove an object; that there is none is no error."""
        with self._explained(self.uri(key)):
            self._client.delete_object(Bucket=self._bucket, Key=self._key(key))

    def _key(self, key: str) -> str:
        return self._prefix + check_key(key)

    def _whole(self, key: str, transfer: Callable[[], Returned]) -> Returned:
        """Return what ``transfer`` returns; it is done again if bytes were damaged or cut off on their way."""
        for tries_left in reversed(range(_TRIES)):
            try:
                with self._explained(self.uri(key)):
                    return transfer()
            except (_Garbled, _Damaged) as error:
                if not tries_left:
                    raise
                logger.warning("%s; trying again", str(error).partition(";")[0])
        raise AssertionError("the last try returns or raises")

    def _remove_leftovers(self, key: str) -> None:
        """End earlier uploads in parts of this object, of which the last writer's alone is to count."""
        name = self._key(key)
        try:
            for page in self._client.get_paginator("list_multipart_uploads").paginate(Bucket=self._bucket, Prefix=name):
                for upload in page.get("Uploads", ()):
                    if upload["Key"] == name:
                        self._client.abort_multipart_upload(Bucket=self._bucket, Key=name, UploadId=upload["UploadId"])
                        logger.info("%s: removed the parts that a killed writer left", self.uri(key))
        except (ClientError, BotoCoreError) as error:
            # Not every deployment allows to list uploads, and the upload itself says best what else is wrong.
            logger.debug("%s: leftover parts not looked for: %s", self.uri(key), type(error).__name__)

    @contextmanager
    def _explained(self, uri: str) -> Iterator[None]:
        try:
            yield
        except ClientError as error:
            if _code(error) in _MISSING and error.operation_name != "HeadBucket":
                if error.operation_name == "HeadObject":
                    # A HEAD has no body to say whether it is the object or the bucket that is missing.
                    with self._explained(self.root):
                        self._client.head_bucket(Bucket=self._bucket)
                raise FileNotFoundError(f"{uri}: no such object") from None
            raise _explain_response(error, uri) from error
        except tuple(_EXPLANATIONS) as error:
            kind, words = next(how for cause, how in _EXPLANATIONS.items() if isinstance(error, cause))
            raise kind(f"{uri}: {words.format(_one_line(error))}") from error


def _explain_response(error: ClientError, uri: str) -> StillhouseError:
    status, code = _status(error), _code(error)
    if code == "NoSuchBucket" or (error.operation_name == "HeadBucket" and status == 404):
        return ConfigurationError(f"{uri}: the bucket does not exist; create it, or check AWS_ENDPOINT_URL")
    if code in _FULL or status == 507:
        return TryAgain(f"{uri}: the bucket is full ({code}); free some space and run again")
    if code == "RequestTimeTooSkewed":
        return TryAgain(f"{uri}: this machine's clock differs from the S3 server's; set it and run again")
    if code in _GARBLED:
        return _Garbled(f"{uri}: the bytes arrive damaged at the S3 server ({code}); check the network and run again")
    if code == "NoSuchUpload":
        return TryAgain(f"{uri}: another writer of this object began anew; run again")
    if status >= 500 or status == 429 or code in _BUSY:
        return TryAgain(f"{uri}: the S3 server says {code} ({status}); run again later")
    # A HEAD has no body to say why: expired credentials are a plain 400 there.
    if status in (401, 403) or code in _FORBIDDEN or (status == 400 and error.operation_name.startswith("Head")):
        return NotPermitted(f"{uri}: the S3 server says {code} ({status}); check the credentials and their rights")
    return ConfigurationError(f"{uri}: the S3 server says {code} ({status}): {_one_line(error)}")


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", "no code"))


def _status(error: ClientError) -> int:
    return error.response["ResponseMetadata"]["HTTPStatusCode"]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


@lru_cache(maxsize=8)
def _client(_process: int, _settings: tuple[tuple[str, str], ...]) -> "S3Client":
    """Make a client, which takes a tenth of a second, once per process and environment."""
    session = boto3.Session()
    region = session.region_name or "us-east-1"
    options = ClientConfig(
        signature_version="s3v4",
        retries={"mode": "standard", "total_max_attempts": 4},
        connect_timeout=5,
        read_timeout=_READ_SECONDS,
    )
    client = session.client("s3", region_name=region, config=options)
    if not client.meta.endpoint_url.rstrip("/").endswith("amazonaws.com"):
        # Servers other than AWS seldom have a DNS name for every bucket.
        client.close()
        client = session.client(
            "s3", region_name=region, config=options.merge(ClientConfig(s3={"addressing_style": "path"}))
        )
    return client
