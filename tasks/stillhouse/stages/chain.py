"""The compression chain as the stages see it: which models there are, and which one is the candidate."""

from collections.abc import Mapping

from stillhouse.contract import DISTILLED, Artifact, Chain, StepReport
from stillhouse.store import read_artifact

_REPORT, _MODEL = "step-", "model-"


def read_chain(inputs: Mapping[str, Artifact]) -> Chain:
    """Return the steps that a task is given; none without a chain.

    Raises:
        IntegrityError: The bytes of a report differ from their digest.
    """
    return Chain.of(
        [
            StepReport.model_validate_json(read_artifact(artifact))
            for name, artifact in inputs.items()
            if name.startswith(_REPORT)
        ]
    )


def model_input(model: str) -> str:
    """Return the name of the input that holds a model of the chain: a step's, or the distilled student."""
    return DISTILLED if model == DISTILLED else f"{_MODEL}{model}"
