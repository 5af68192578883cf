"""Whether a model is what it claims to be: its files, digests, signature and place in the ledger. It is not loaded."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from stillhouse.contract import ConfigurationError, DataRejected, IntegrityError, sha256_of
from stillhouse.promotion.ledger import Ledger
from stillhouse.promotion.packaging import MODEL_FOLDER, SIGNATURE_FILE, check_package, check_plain
from stillhouse.promotion.production import COPIED_FROM_TAG
from stillhouse.promotion.registry import DIGEST_TAG, SIGNATURE_TAG, UNSIGNED, Registry, split_model_uri
from stillhouse.promotion.signing import verify_signature
from stillhouse.promotion.variants import VARIANT_OF_TAG
from stillhouse.store import ObjectStore, describe_tree
from stillhouse.store.trees import MANIFEST, check_same_files, parse_manifest


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at."""

    subject: str
    outcome: bool | None
    """None: there was nothing to look at."""
    detail: str
    """What was found, in one line."""


@dataclass(frozen=True, kw_only=True)
class _Model:
    """A model on this machine, and what was said about it where it came from."""

    folder: Path
    package: Path | None
    """The MLflow model around the folder; None for a plain model folder."""
    signature: Path
    name: str | None = None
    alias: str | None = None
    version: int | None = None
    tags: dict[str, str] | None = None
    """None for a folder."""


def verify_model(
    uri: str,
    *,
    tracking_uri: str | None = None,
    public_pem: bytes | None = None,
    store: ObjectStore | None = None,
) -> list[Check]:
    """Check a registered model or a folder, in a private copy of the former.

    Args:
        uri: ``models:/NAME/VERSION``, ``models:/NAME@ALIAS``, or a folder: an MLflow model, or a plain model folder
            with its signature beside it.
        tracking_uri: The MLflow server of a registered model.
        public_pem: Key that must have signed it; without one, a signed model fails, and an unsigned one does not.
        store: Object store whose ledger must hold a registered model.

    Raises:
        ConfigurationError: There is no such version, alias or folder.
        IntegrityError: The server has lost the version's files.
        TryAgain: The server or the store is away.
        NotPermitted: The server refuses the credentials.
    """
    with _obtained(uri, tracking_uri) as model:
        checks = [
            _check("files", lambda: _check_files(model)),
            _check("manifest", lambda: _check_manifest(model)),
            _check("digest", lambda: _check_digest(model)),
            _check("signature", lambda: _check_signature(model, public_pem)),
        ]
        if store is not None:
            checks.append(_check("ledger", lambda: _check_ledger(model, store)))
    return checks


def print_checks(uri: str, checks: list[Check]) -> None:
    """Print a short table."""
    marks = {True: "[green]✓", False: "[red]✗", None: "[dim]–"}
    table = Table("", "", Column(overflow="fold"), box=None, show_header=False, padding=(0, 1), title=escape(uri))
    table.title_justify = "left"
    for check in checks:
        table.add_row(marks[check.outcome], check.subject, escape(check.detail))
    Console().print(table)


@contextmanager
def _obtained(uri: str, tracking_uri: str | None) -> Iterator[_Model]:
    if not uri.startswith("models:/"):
        yield _local(Path(uri))
        return
    if tracking_uri is None:
        raise ConfigurationError(f"{uri} needs an MLflow server; give --tracking or set MLFLOW_TRACKING_URI")
    registry = Registry(tracking_uri)
    _, alias, _ = split_model_uri(uri)
    name, version = registry.resolve(uri)
    tags = registry.tags(name, version)
    with TemporaryDirectory() as private:
        package = registry.download(name, version, Path(private))
        yield _Model(
            folder=package / MODEL_FOLDER,
            package=package,
            signature=package / SIGNATURE_FILE,
            name=name,
            alias=alias,
            version=version,
            tags=tags,
        )


def _local(path: Path) -> _Model:
    if not path.is_dir():
        raise ConfigurationError(f"{path} is no folder; give models:/NAME@ALIAS, models:/NAME/VERSION or a folder")
    if (path / "MLmodel").is_file():
        return _Model(folder=path / MODEL_FOLDER, package=path, signature=path / SIGNATURE_FILE)
    return _Model(folder=path, package=None, signature=path.resolve().parent / SIGNATURE_FILE)


def _check(subject: str, look: Callable[[], tuple[bool | None, str]]) -> Check:
    try:
        outcome, detail = look()
    except (DataRejected, ConfigurationError) as error:
        outcome, detail = False, str(error)
    return Check(subject=subject, outcome=outcome, detail=detail)


def _check_files(model: _Model) -> tuple[bool, str]:
    if model.package is None:
        check_plain(model.folder)
    else:
        check_package(model.package)
    return True, "weights and settings; nothing that runs"


def _check_manifest(model: _Model) -> tuple[bool | None, str]:
    if not (model.folder / MANIFEST).is_file():
        return None, f"no {MANIFEST}"
    data = (model.folder / MANIFEST).read_bytes()
    manifest = parse_manifest(data, uri=MODEL_FOLDER, sha256=sha256_of(data))
    expected = {file.path: file.sha256 for file in manifest.files}
    check_same_files(expected, _digests(model.folder), uri=MODEL_FOLDER)
    return True, f"{len(expected)} files have their digests"


def _check_digest(model: _Model) -> tuple[bool | None, str]:
    sha256 = describe_tree(model.folder).sha256
    if model.tags is None:
        return None, f"{sha256}, compared with no registry"
    if model.tags.get(DIGEST_TAG) != sha256:
        raise IntegrityError(f"the files are {sha256}, and the registry says {model.tags.get(DIGEST_TAG, 'nothing')}")
    return True, f"{sha256}, as the registry says"


def _check_signature(model: _Model, public_pem: bytes | None) -> tuple[bool | None, str]:
    if public_pem is not None:
        verify_signature(model.folder, model.signature, public_pem)
        return True, f"of every file, by key {sha256_of(public_pem)}"
    claimed = (model.tags or {}).get(SIGNATURE_TAG, UNSIGNED)
    if model.signature.is_file() or claimed != UNSIGNED:
        raise IntegrityError("the model is signed, and no key was given to check it with; give --key")
    return None, "not signed"


def _check_ledger(model: _Model, store: ObjectStore) -> tuple[bool | None, str]:
    if model.tags is None or model.name is None:
        return None, "a folder has no ledger"
    origin = model.tags.get(COPIED_FROM_TAG)
    name = split_model_uri(origin)[0] if origin else model.name
    history = Ledger(store, name).verify()
    sha256 = model.tags.get(DIGEST_TAG)
    promoted = model.tags.get(VARIANT_OF_TAG, sha256)
    actions = [action for action in history.actions if action.artifact.sha256 == promoted]
    if not actions:
        raise IntegrityError(f"the ledger of {name} holds no promotion of this model, or of what it is a variant of")
    head = history.head
    if model.alias == "champion" and head is not None and head.artifact.sha256 != sha256:
        raise IntegrityError(f"by the ledger of {name}, version {head.registered_version} is champion")
    variant = "as a variant: " if promoted != sha256 else ""
    return True, f"{variant}{actions[-1].action} in entry {actions[-1].sequence} of {name}, chain intact"


def _digests(folder: Path) -> dict[str, str]:
    return {file.path: file.sha256 for file in describe_tree(folder).files}
