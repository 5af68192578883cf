"""What models cost, what the gate made of the evidence, and what a promotion did: the files that reviewers read."""

from typing import Literal

from pydantic import Field

from stillhouse.contract.canonical import canonical_json, sha256_of
from stillhouse.contract.scores import Estimate
from stillhouse.recipe import Config, Sha256


class ModelTiming(Config):
    """Cost of one model, measured on one machine beside the others."""

    parameters: int = Field(ge=1)
    num_bytes: int = Field(ge=1)
    """Of the weights on disk."""
    latency_p50_ms: float = Field(gt=0)
    latency_p95_ms: float = Field(gt=0)
    """Per text at batch 1, tokenization included, warm."""
    throughput: float = Field(gt=0)
    """Texts per second at the recipe's evaluation batch size."""
    peak_memory_bytes: int | None = Field(default=None, ge=0)
    """Resident memory that loading it and answering batches takes, in a process of its own, beyond what the libraries
    take; on an accelerator what is allocated there. None where it can't be measured."""


class Timings(Config):
    """Sizes and speeds. Kept apart from the summary: they depend on the machine and on the moment."""

    schema_id: Literal["stillhouse/timings/1"] = "stillhouse/timings/1"
    device: str = "cpu"
    """Kind of device that the models ran on, as torch calls it."""
    threads: int = Field(ge=1)
    """Of the CPU."""
    num_items: int = Field(ge=1)
    models: dict[str, ModelTiming]


CheckName = Literal["leakage", "contamination", "coverage", "terms", "canary", "synthesis"]


class IntegrityCheck(Config):
    """Something that must be in order before any figure counts, such as that no test text is in the training data."""

    name: CheckName
    outcome: Literal["pass", "fail", "warn"]
    detail: str
    """What was found, in one line of counts and figures."""


Verdict = Literal["promote", "reject", "inconclusive"]


class RuleOutcome(Config):
    """What one rule of the policy found."""

    rule: str
    """The rule's name in the policy."""
    requirement: str
    """What it asks for, in words and numbers."""
    outcome: Literal["pass", "fail", "inconclusive"]
    value: Estimate | None = None
    """The figure that it judged; None if the evidence lacks it, which fails."""
    bound: float | None = None
    power: float | None = Field(default=None, ge=0, le=1)
    """Of a comparison: the chance that this many items settle the rule in favour of an equally good model."""
    reason: str
    """Why it came out like this, in one line."""


class Decision(Config):
    """What the gate decided, on what grounds. An approval is bound to its digest."""

    schema_id: Literal["stillhouse/decision/2"] = "stillhouse/decision/2"
    verdict: Verdict
    candidate: str
    model_sha256: Sha256
    """Digest of the candidate's model folder."""
    champion_sha256: Sha256 | None
    """Digest of the champion that the candidate was compared with; None if there was none."""
    policy: str
    """Name of the policy."""
    policy_sha256: Sha256
    evidence_sha256: Sha256
    """Digest of the evaluation summary."""
    timings_sha256: Sha256 | None = None
    """Digest of the timings, if a rule read them."""
    checks: tuple[IntegrityCheck, ...] = ()
    """What was known about the integrity of data and evidence."""
    rules: tuple[RuleOutcome, ...]
    notes: tuple[str, ...] = ()
    """What a reviewer must know although no rule asks, such as that distillation brought nothing."""

    @property
    def digest(self) -> str:
        """SHA-256 of the decision's canonical JSON."""
        return sha256_of(canonical_json(self))


class Promotion(Config):
    """What a promotion did, as read back from the registry."""

    schema_id: Literal["stillhouse/promotion/2"] = "stillhouse/promotion/2"
    model: str
    """Name of the registered model."""
    version: int = Field(ge=1)
    model_sha256: Sha256
    aliases: dict[str, int]
    """Version behind each alias, afterwards."""
    champion_before: int | None
    """Version that was champion until then; None if there was none."""
    ledger_sequence: int = Field(ge=1)
    ledger_sha256: Sha256
    """Digest of the ledger's entry."""
    already_champion: bool
    """The model was champion before this was asked for; nothing was appended."""
    variants: dict[str, int] = {}
    """Versions of the same model in other forms, by the step of the compression chain that made them."""
