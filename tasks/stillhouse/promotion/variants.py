"""Kept models of the compression chain in other forms than the champion's, as further versions beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stillhouse.contract import METRICS, Artifact, StepReport
from stillhouse.promotion.registry import Registry

VARIANT_TAG = "stillhouse.variant"
"""Name of the step that made it."""
FORM_TAG = "stillhouse.form"
VARIANT_OF_TAG = "stillhouse.variant_of"
"""Digest of the model that was promoted."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A kept model of the chain that transformers can't read."""

    step: StepReport
    """That made it."""
    artifact: Artifact
    """The model folder in the object store."""
    folder: Path
    """Its verified files."""


def register_variants(
    registry: Registry,
    model_name: str,
    variants: Sequence[Variant],
    *,
    champion_sha256: str,
    tags: Mapping[str, str],
    mlflow_run_id: str,
) -> dict[str, int]:
    """Register every variant, let it load back and predict in a fresh process, and give none an alias.

    A variant is found again by its digest, so the call can be repeated after a kill anywhere.

    Args:
        registry: Signs them if the deployment has a key.
        model_name: The champion's registered model.
        variants: In the chain's order.
        champion_sha256: Digest of the model that was promoted.
        tags: Where they come from, as the champion's.
        mlflow_run_id: The run that new versions belong to.

    Returns:
        The version of each variant, by the name of its step.

    Raises:
        IntegrityError: One does not load back, or holds more than data.
        ConfigurationError: The deployment has a public key, and no private one to sign with.
        TryAgain: The server is away.
        NotPermitted: The server refuses the credentials.
    """
    versions: dict[str, int] = {}
    for variant in variants:
        own = {**_said_of(variant.step), VARIANT_OF_TAG: champion_sha256}
        version = registry.register(
            model_name, variant.folder, variant.artifact, {**tags, **own}, mlflow_run_id=mlflow_run_id
        )
        registry.load_back(model_name, version, variant.artifact.sha256)
        registry.set_tags(model_name, version, own)  # an older run may have registered it, beside another champion
        versions[variant.step.name] = version
    return versions


def _said_of(step: StepReport) -> dict[str, str]:
    score = step.score
    return {
        VARIANT_TAG: step.name,
        FORM_TAG: step.form,
        "stillhouse.validation_score": (
            f"{METRICS[step.metric].title} {score.value:.4f} ({score.low:.4f} to {score.high:.4f}, n = {score.n})"
        ),
        "stillhouse.bytes": str(step.size.num_bytes),
        "stillhouse.parameters": str(step.size.parameters),
    }
