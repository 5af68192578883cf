"""A verified copy of a champion in a production registry: another registered model, maybe on another server."""

import logging
from pathlib import Path
from tempfile import TemporaryDirectory

from stillhouse.contract import ConfigurationError, Conflict, IntegrityError
from stillhouse.promotion.packaging import MODEL_FOLDER, SIGNATURE_FILE, check_package
from stillhouse.promotion.registry import DIGEST_TAG, SIGNATURE_TAG, UNSIGNED, Registry
from stillhouse.promotion.signing import SigningKeys, verify_signature
from stillhouse.recipe import ProductionConfig
from stillhouse.store import describe_tree

logger = logging.getLogger(__name__)

COPIED_FROM_TAG = "stillhouse.copied_from"
_CHAMPION = "champion"


def copy_to_production(
    config: ProductionConfig,
    *,
    source: Registry,
    model: str,
    version: int,
    sha256: str,
    keys: SigningKeys | None = None,
) -> int:
    """Copy a version to production, load it back from there, and only then let ``champion`` lead to it there.

    A copy is found again by its digest, so the call can be repeated after a kill anywhere, and brings an older version
    back at no cost. On one server the registry copies the version. For another one the package is downloaded, checked,
    verified and uploaded there with its signature, its model card and its tags.

    Args:
        config: Where to.
        source: The registry that has the version.
        model: Name of the registered model there.
        version: Its version.
        sha256: Digest that the model's files must have.
        keys: Of the deployment: what was signed must verify here and on the far side.

    Returns:
        The version in the production registry.

    Raises:
        IntegrityError: The files differ from the digest on either side, are not signed by the key, or the copy does
            not load back. ``champion`` was not moved.
        ConfigurationError: The copy would be the original, or there is no such version.
        Conflict: Somebody else moved ``champion`` there meanwhile.
        TryAgain: A server is away.
        NotPermitted: A server refuses the credentials.
    """
    same_server = config.tracking_uri is None or config.tracking_uri.rstrip("/") == source.uri.rstrip("/")
    if same_server and config.model == model:
        raise ConfigurationError(f"promotion.production is {model} itself; name another model or another tracking_uri")
    tags = {SIGNATURE_TAG: UNSIGNED, **source.tags(model, version), COPIED_FROM_TAG: f"models:/{model}/{version}"}
    if tags.get(DIGEST_TAG) != sha256:
        raise IntegrityError(f"models:/{model}/{version} is not the model that was promoted; nothing was copied")
    if same_server:
        target = Registry(source.uri, keys)
        copy = target.copy_version(model, version, config.model, tags)
    else:
        target = Registry(str(config.tracking_uri), keys)
        copy = _export(source, target, config.model, model=model, version=version, tags=tags, keys=keys)
    target.load_back(config.model, copy, sha256)
    target.set_alias(config.model, _CHAMPION, copy)
    if target.aliases(config.model).get(_CHAMPION) != copy:
        raise Conflict(f"{config.model}@{_CHAMPION} at {target.uri} was moved by somebody else meanwhile; run again")
    logger.info("models:/%s/%s is %s@%s at %s", model, version, config.model, _CHAMPION, target.uri)
    return copy


def _export(
    source: Registry,
    target: Registry,
    target_name: str,
    *,
    model: str,
    version: int,
    tags: dict[str, str],
    keys: SigningKeys | None,
) -> int:
    with TemporaryDirectory() as private:
        package = source.download(model, version, Path(private))
        check_package(package)
        if describe_tree(package / MODEL_FOLDER).sha256 != tags[DIGEST_TAG]:
            raise IntegrityError(f"models:/{model}/{version} has other files than its digest; nothing was copied")
        if keys is not None:
            verify_signature(package / MODEL_FOLDER, package / SIGNATURE_FILE, keys.public_pem)
        return target.receive(target_name, package, tags)
