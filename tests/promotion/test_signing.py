"""Signatures: whatever is done to a signed folder, key or signature is noticed, and no key ever shows."""

import json
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from stillhouse.contract import ConfigurationError, DataRejected, IntegrityError, NotPermitted
from stillhouse.promotion.signing import (
    SIGNING_KEY,
    VERIFY_KEY,
    SigningKeys,
    generate_key,
    read_public_key,
    sign_model,
    verify_signature,
)

FILES = {
    "config.json": b"{}",
    "model.safetensors": b"weights" * 1000,
    ".gitignore": b"*.tmp",  # what other tools leave out of a signature
    ".gitattributes": b"* text",
    ".git/config": b"[core]",
    ".github/workflow.yml": b"on: push",
    "nested/deep/file.txt": b"text",
    ".hidden": b"",
}


def write_model(folder: Path) -> Path:
    for name, data in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def make_keys(path: Path) -> SigningKeys:
    generate_key(path)
    keys = SigningKeys.from_environment({SIGNING_KEY: str(path)})
    assert keys is not None
    return keys


@pytest.fixture
def keys(tmp_path: Path) -> SigningKeys:
    return make_keys(tmp_path / "keys" / "key.pem")


@pytest.fixture
def model(tmp_path: Path, keys: SigningKeys) -> Path:
    """A signed model folder, with its signature beside it."""
    folder = write_model(tmp_path / "package" / "model")
    assert keys.private_key
    sign_model(folder, keys.private_key, folder.with_name("model.sig"))
    return folder


def verify(model: Path, keys: SigningKeys) -> None:
    verify_signature(model, model.with_name("model.sig"), keys.public_pem)


def test_what_was_signed_verifies_wherever_it_lies(model: Path, keys: SigningKeys, tmp_path: Path) -> None:
    verify(model, keys)
    (tmp_path / "elsewhere").mkdir()
    moved = model.rename(tmp_path / "elsewhere" / "renamed")
    verify_signature(moved, model.with_name("model.sig"), keys.public_pem)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("change", ["changed", "removed"])
def test_every_file_is_covered(model: Path, keys: SigningKeys, name: str, change: str) -> None:
    if change == "changed":
        (model / name).write_bytes(FILES[name] + b" ")
    else:
        (model / name).unlink()
    with pytest.raises(IntegrityError, match="not this key's signature of these files"):
        verify(model, keys)


@pytest.mark.parametrize("name", ["extra.txt", ".git/hooks", ".gitmodules", "nested/.gitignore", ".github/x"])
def test_an_added_file_is_noticed(model: Path, keys: SigningKeys, name: str) -> None:
    (model / name).write_bytes(b"")
    with pytest.raises(IntegrityError):
        verify(model, keys)


def test_a_link_is_noticed_and_never_signed(model: Path, keys: SigningKeys, tmp_path: Path) -> None:
    (model / "link").symlink_to(model / "config.json")
    with pytest.raises(IntegrityError):
        verify(model, keys)
    assert keys.private_key
    with pytest.raises(DataRejected, match="can't be signed"):
        sign_model(model, keys.private_key, tmp_path / "other.sig")


def test_another_keys_signature_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="not this key's"):
        verify(model, make_keys(tmp_path / "other.pem"))


def test_a_missing_signature_is_refused(model: Path, keys: SigningKeys) -> None:
    model.with_name("model.sig").unlink()
    with pytest.raises(IntegrityError, match="is not signed"):
        verify(model, keys)


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff\x00", b'{"dsseEnvelope": 7}'])
def test_a_forged_signature_file_is_refused(model: Path, keys: SigningKeys, data: bytes) -> None:
    model.with_name("model.sig").write_bytes(data)
    with pytest.raises(IntegrityError, match="not this key's"):
        verify(model, keys)


def test_another_models_signature_is_refused(model: Path, keys: SigningKeys, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other")
    (other / "config.json").write_bytes(b"{ }")
    assert keys.private_key
    sign_model(other, keys.private_key, model.with_name("model.sig"))
    with pytest.raises(IntegrityError, match="not this key's"):
        verify(model, keys)


def test_the_key_in_the_signature_is_not_believed(model: Path, keys: SigningKeys, tmp_path: Path) -> None:
    """An attacker signs with an own key and names ours."""
    other = make_keys(tmp_path / "other.pem")
    signature = model.with_name("model.sig")
    assert other.private_key
    sign_model(model, other.private_key, signature)
    bundle = json.loads(signature.read_bytes())
    bundle["verificationMaterial"]["publicKey"]["hint"] = keys.fingerprint
    signature.write_text(json.dumps(bundle))
    with pytest.raises(IntegrityError, match="not this key's"):
        verify(model, keys)


def test_a_signature_that_leaves_files_out_is_refused(model: Path, keys: SigningKeys) -> None:
    """As the signer's own command makes one by default: it ignores what belongs to Git."""
    from model_signing import signing

    signature = model.with_name("model.sig")
    signing.Config().use_elliptic_key_signer(private_key=keys.private_key).sign(model, signature)
    with pytest.raises(IntegrityError, match="does not cover every file"):
        verify(model, keys)


def test_other_tools_verify_what_we_sign(keys: SigningKeys, tmp_path: Path) -> None:
    """Unless it holds files of Git, of which they must be told."""
    from model_signing import verifying

    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_bytes(b"{}")
    assert keys.private_key
    sign_model(model, keys.private_key, tmp_path / "model.sig")
    (tmp_path / "public.pem").write_bytes(keys.public_pem)
    config = verifying.Config().use_elliptic_key_verifier(public_key=tmp_path / "public.pem")
    config.verify(model, tmp_path / "model.sig")


def test_the_fingerprint_is_the_one_in_the_signature(model: Path, keys: SigningKeys) -> None:
    bundle = json.loads(model.with_name("model.sig").read_bytes())
    assert bundle["verificationMaterial"]["publicKey"]["hint"] == keys.fingerprint


def test_a_generated_key_is_private_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "new" / "key.pem"
    generate_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match="exists"):
        generate_key(path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["key.pem"]


def test_no_setting_means_no_keys() -> None:
    assert SigningKeys.from_environment({}) is None
    assert SigningKeys.from_environment({SIGNING_KEY: "", VERIFY_KEY: ""}) is None


def test_the_public_key_alone_verifies(model: Path, keys: SigningKeys, tmp_path: Path) -> None:
    public_key = tmp_path / "public.pem"
    public_key.write_bytes(keys.public_pem)
    public = SigningKeys.from_environment({VERIFY_KEY: str(public_key)})
    assert public is not None
    assert (public.private_key, public.fingerprint) == (None, keys.fingerprint)
    verify(model, public)
    pair = SigningKeys.from_environment({SIGNING_KEY: str(keys.private_key), VERIFY_KEY: str(public_key)})
    assert pair == keys
    other = make_keys(tmp_path / "other.pem")
    with pytest.raises(ConfigurationError, match="is not the public key of"):
        SigningKeys.from_environment({SIGNING_KEY: str(other.private_key), VERIFY_KEY: str(public_key)})


@pytest.mark.parametrize(
    ("mode", "fits"), [(0o600, True), (0o400, True), (0o440, True), (0o604, False), (0o620, False)]
)
def test_a_private_key_open_to_others_is_refused(keys: SigningKeys, mode: int, fits: bool) -> None:
    assert keys.private_key
    keys.private_key.chmod(mode)
    environment = {SIGNING_KEY: str(keys.private_key)}
    if fits:
        assert SigningKeys.from_environment(environment) == keys
    else:
        with pytest.raises(NotPermitted, match="open to other users"):
            SigningKeys.from_environment(environment)


def unfit_keys() -> dict[str, bytes]:
    def pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, password: bytes | None = None) -> bytes:
        how = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
        return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how)

    curve = ec.generate_private_key(ec.SECP256R1())
    return {
        "encrypted": pem(curve, b"secret"),
        "other curve": pem(ec.generate_private_key(ec.SECP256K1())),
        "rsa": pem(rsa.generate_private_key(65537, 2048)),
        "empty": b"",
        "garbage": b"-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n",
        "cut": pem(curve)[:100],
    }


@pytest.mark.parametrize("kind", ["encrypted", "other curve", "rsa", "empty", "garbage", "cut"])
def test_an_unfit_key_is_refused_without_showing_it(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "key.pem"
    data = unfit_keys()[kind]
    path.write_bytes(data)
    path.chmod(0o600)
    with pytest.raises(ConfigurationError, match="is no private key") as caught:
        SigningKeys.from_environment({SIGNING_KEY: str(path)})
    shown = str(caught.value)
    assert "\n" not in shown
    assert not any(line in shown for line in data.decode().splitlines()[1:-1])
    with pytest.raises(ConfigurationError, match="is no public key"):
        read_public_key(path)


@pytest.mark.parametrize("setting", [SIGNING_KEY, VERIFY_KEY])
def test_a_missing_key_file_is_named(tmp_path: Path, setting: str) -> None:
    with pytest.raises(ConfigurationError, match=f"missing.pem does not exist; correct {setting}"):
        SigningKeys.from_environment({setting: str(tmp_path / "missing.pem")})


def test_keys_show_no_secret_when_printed(keys: SigningKeys) -> None:
    assert keys.private_key
    secret = keys.private_key.read_text().splitlines()[1]
    assert secret not in repr(keys)
