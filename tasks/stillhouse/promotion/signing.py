"""Signatures of model folders (OpenSSF model signing) with a key of the deployment, given by reference.

``STILLHOUSE_SIGNING_KEY`` is the path of a PEM file with a private key on curve P-256, P-384 or P-521, and
``STILLHOUSE_VERIFY_KEY`` that of its public key, which may be left out where the private one is there. No message, tag
or result holds more of a key than the fingerprint of its public half.
"""

import base64
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from stillhouse.contract import ConfigurationError, DataRejected, IntegrityError, NotPermitted, sha256_of
from stillhouse.store.atomic import finish, make_folder, os_errors_explained, sync_folder, unfinished_file

SIGNING_KEY = "STILLHOUSE_SIGNING_KEY"
VERIFY_KEY = "STILLHOUSE_VERIFY_KEY"

_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)  # what model_signing takes
_OPEN_TO_OTHERS = 0o027  # the group may read: Kubernetes mounts secrets so for a pod that is not root


@dataclass(frozen=True, kw_only=True)
class SigningKeys:
    """The deployment's key pair, or its public half alone."""

    private_key: Path | None
    """File of the private key; None where models are only verified."""
    public_pem: bytes
    """The public key."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self | None:
        """Return the keys that the deployment names, or None if it signs nothing.

        Raises:
            ConfigurationError: A file is missing or holds no such key, or the two are no pair.
            NotPermitted: The private key is open to other users, or closed to this one.
        """
        named = environment.get(SIGNING_KEY)
        private_key = Path(named) if named else None
        public_pem = _public_half(private_key) if private_key else None
        if named := environment.get(VERIFY_KEY):
            given = read_public_key(Path(named))
            if public_pem not in (None, given):
                raise ConfigurationError(f"{VERIFY_KEY} is not the public key of {SIGNING_KEY}; give those of one pair")
            public_pem = given
        return cls(private_key=private_key, public_pem=public_pem) if public_pem else None

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the public key's PEM text, by which signatures name their key."""
        return sha256_of(self.public_pem)


def generate_key(path: Path) -> None:
    """Write a new private key on curve P-256, readable by this user alone. The file appears whole or not at all.

    Raises:
        ConfigurationError: The file exists.
    """
    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with os_errors_explained(path):
        make_folder(path.parent)
        with unfinished_file(path.parent) as (file, unfinished):
            os.fchmod(file.fileno(), 0o600)
            file.write(pem)
            finish(file)
            try:
                path.hardlink_to(unfinished)  # unlike a rename, fails if another process was faster
            except FileExistsError:
                raise ConfigurationError(f"{path} exists; it is kept") from None
        sync_folder(path.parent)


def read_public_key(path: Path) -> bytes:
    """Return a public key as PEM text in its standard form.

    Raises:
        ConfigurationError: The file is missing or holds no public key on a curve that is known.
    """
    try:
        key = serialization.load_pem_public_key(_read(path, VERIFY_KEY))
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, _CURVES):
        raise ConfigurationError(f"{path} is no public key on curve P-256, P-384 or P-521; give its PEM file")
    return _public_pem(key)


def sign_model(folder: Path, private_key: Path, signature_path: Path) -> None:
    """Sign every file of a model folder.

    Args:
        folder: The model.
        private_key: PEM file of the key.
        signature_path: The signature is written there, as a Sigstore bundle. Not inside the folder.

    Raises:
        DataRejected: The folder holds symbolic links.
        ConfigurationError: The key can't be used.
    """
    from model_signing import signing  # takes a second

    _public_half(private_key)
    config = signing.Config().set_hashing_config(_hash_every_file()).use_elliptic_key_signer(private_key=private_key)
    try:
        config.sign(folder, signature_path)
    except ValueError as error:
        raise DataRejected(f"{folder} can't be signed: it holds more than files and folders") from error


def verify_signature(folder: Path, signature_path: Path, public_pem: bytes) -> None:
    """Check that the signature is this key's, and is of exactly the files in the folder.

    Args:
        folder: The model.
        signature_path: See `sign_model`.
        public_pem: See `read_public_key`.

    Raises:
        IntegrityError: There is no signature, it is another key's, or a file was changed, added or removed.
    """
    from model_signing import verifying

    if not signature_path.is_file():
        raise IntegrityError(f"{signature_path.name} is missing: the model is not signed")
    with TemporaryDirectory() as private:
        public_key = Path(private, "key.pem")  # model_signing reads keys from files only
        public_key.write_bytes(public_pem)
        config = verifying.Config().set_hashing_config(_hash_every_file())
        try:
            config.use_elliptic_key_verifier(public_key=public_key).verify(folder, signature_path)
        except Exception as error:  # whatever a forged file makes of the parsers in between
            raise IntegrityError(f"{signature_path.name} is not this key's signature of these files") from error
    # A signature may itself say which files it leaves out, as those of other tools do for Git's.
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    if _signed_files(signature_path) != found:
        raise IntegrityError(f"{signature_path.name} does not cover every file; sign the model again")


def _hash_every_file() -> Any:
    from model_signing import hashing

    return hashing.Config().set_ignored_paths(paths=(), ignore_git_paths=False)


def _signed_files(signature_path: Path) -> set[str]:
    """Return the names in a signature that was verified."""
    payload = json.loads(base64.b64decode(json.loads(signature_path.read_bytes())["dsseEnvelope"]["payload"]))
    return {resource["name"] for resource in payload["predicate"]["resources"]}


def _public_half(private_key: Path) -> bytes:
    data = _read(private_key, SIGNING_KEY)
    if private_key.stat().st_mode & _OPEN_TO_OTHERS:
        raise NotPermitted(f"{private_key} is open to other users; chmod 600 it, or make a new key if they had access")
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None  # the error may quote the file
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, _CURVES):
        raise ConfigurationError(
            f"{private_key} is no private key on curve P-256, P-384 or P-521 without a password; give its PEM file"
        )
    return _public_pem(key.public_key())


def _public_pem(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _read(path: Path, setting: str) -> bytes:
    try:
        with os_errors_explained(path):
            return path.read_bytes()
    except FileNotFoundError:
        raise ConfigurationError(f"{path} does not exist; correct {setting}") from None
