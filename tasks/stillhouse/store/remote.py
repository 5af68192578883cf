"""Files and folders from buckets and from model hubs."""

from pathlib import Path

from stillhouse.contract import ConfigurationError, NotPermitted, TryAgain, canonical_json, sha256_of
from stillhouse.recipe import HubSource, S3Source
from stillhouse.store.atomic import make_folder
from stillhouse.store.downloads import cached_entry
from stillhouse.store.naming import S3_SCHEME, check_key
from stillhouse.store.s3 import S3Store

_HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.model"]
"""Weights, configuration, tokenizer: no pickle, no code."""


def fetch_s3(source: S3Source, cache: Path) -> Path:
    """Return the local path of an object, or of the objects below a prefix."""
    store, prefix = _open(source)
    fingerprint, names = _list(store, source, prefix)

    def fill(folder: Path) -> None:
        for key, name in names.items():
            make_folder((folder / name).parent)
            store.get_file(key, folder / name)
        if _list(store, source, prefix)[0] != fingerprint:
            raise TryAgain(f"{source.uri} changed while it was read; run again when its writer is done")

    entry = cached_entry(cache / "s3" / fingerprint, fill)
    return entry if prefix.endswith("/") else entry / next(iter(names.values()))


def fingerprint_s3(source: S3Source) -> str:
    """Return a digest of the names, sizes and ETags of the source's objects."""
    store, prefix = _open(source)
    return _list(store, source, prefix)[0]


def fetch_hub(source: HubSource) -> Path:
    """Return the local folder of a model repository at its revision, in the hub's own cache."""
    try:
        from huggingface_hub import errors, snapshot_download
    except ImportError:
        raise ConfigurationError(f"{source.repo}: install stillhouse[ml] to read from model hubs") from None
    try:
        return Path(snapshot_download(source.repo, revision=source.revision, allow_patterns=_HUB_FILES))
    except errors.GatedRepoError:
        raise NotPermitted(f"{source.repo}: accept its terms on the hub and set HF_TOKEN") from None
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
        raise ConfigurationError(
            f"{source.repo}: no such model or revision for this token; correct the recipe"
        ) from None
    except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, OSError):
        raise TryAgain(
            f"{source.repo}: the model hub does not answer; check the network, HF_ENDPOINT and HF_HUB_OFFLINE"
        ) from None


def _open(source: S3Source) -> tuple[S3Store, str]:
    bucket, _, prefix = source.uri.removeprefix(S3_SCHEME).partition("/")
    check_key(prefix.removesuffix("/"))
    return S3Store(S3_SCHEME + bucket), prefix


def _list(store: S3Store, source: S3Source, prefix: str) -> tuple[str, dict[str, str]]:
    """Return the fingerprint, and for each key the name that its file gets."""
    listing = store.listing(prefix)
    if not prefix.endswith("/"):
        listing = {key: entry for key, entry in listing.items() if key == prefix}
    if not listing:
        raise ConfigurationError(f"{source.uri}: there is nothing; correct the source in the recipe")
    base = prefix.rpartition("/")[0]
    names = {key: key.removeprefix(f"{base}/") if base else key for key in listing}
    return sha256_of(canonical_json({names[key]: list(entry) for key, entry in listing.items()})), names
