"""What stages promise each other: requests, results, exit codes, digests and content keys."""

from stillhouse.contract.canonical import canonical_json, pretty_json, sha256_of, sha256_of_file
from stillhouse.contract.errors import (
    ConfigurationError,
    Conflict,
    DataRejected,
    ExitCode,
    IntegrityError,
    NotPermitted,
    StageBug,
    StillhouseError,
    TryAgain,
    exit_code_of,
)
from stillhouse.contract.evidence import (
    Decision,
    IntegrityCheck,
    ModelTiming,
    Promotion,
    RuleOutcome,
    Timings,
    Verdict,
)
from stillhouse.contract.keys import code_version, content_key
from stillhouse.contract.quiet import QUIET, be_quiet
from stillhouse.contract.scores import (
    METRICS,
    Comparison,
    Estimate,
    EvaluationSummary,
    Metric,
    ModelScores,
    SuiteSummary,
)
from stillhouse.contract.stage import (
    RESULT_FILE,
    Artifact,
    Progress,
    ResultRef,
    StageRequest,
    StageResult,
    TaskRecord,
)
from stillhouse.contract.training import HistoryPoint, TrainingHistory

__all__ = [
    "METRICS",
    "QUIET",
    "RESULT_FILE",
    "Artifact",
    "Comparison",
    "ConfigurationError",
    "Conflict",
    "DataRejected",
    "Decision",
    "Estimate",
    "EvaluationSummary",
    "ExitCode",
    "HistoryPoint",
    "IntegrityCheck",
    "IntegrityError",
    "Metric",
    "ModelScores",
    "ModelTiming",
    "NotPermitted",
    "Progress",
    "Promotion",
    "ResultRef",
    "RuleOutcome",
    "StageBug",
    "StageRequest",
    "StageResult",
    "StillhouseError",
    "SuiteSummary",
    "TaskRecord",
    "Timings",
    "TrainingHistory",
    "TryAgain",
    "Verdict",
    "be_quiet",
    "canonical_json",
    "code_version",
    "content_key",
    "exit_code_of",
    "pretty_json",
    "sha256_of",
    "sha256_of_file",
]
