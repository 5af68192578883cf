"""Whole workflows of language models, as ``stillhouse run`` runs them."""

from pathlib import Path

import pytest
from runs import results, run_in_process
from tiny_language import write_language_workflow

from stillhouse.contract import Decision, EvaluationSummary, ExitCode, StageResult
from stillhouse.store import read_artifact

pytestmark = pytest.mark.slow


def result_of(root: Path, stage: str) -> StageResult:
    (found,) = (result for result in results(root).values() if result.stage == stage)
    return found


@pytest.mark.parametrize("task", ["causal-lm", "masked-lm"])
def test_a_language_model_is_distilled_and_judged(task: str, tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    folder.mkdir()
    recipe = write_language_workflow(folder, masked=task == "masked-lm")
    done = run_in_process(recipe, tmp_path)
    assert done.returncode == ExitCode.NOT_PROMOTED, done.stderr  # there is no MLflow server
    summary = EvaluationSummary.model_validate_json(read_artifact(result_of(tmp_path, "evaluate").outputs["summary"]))
    (suite,) = summary.suites
    assert suite.metric == "nll"
    assert set(suite.models) == {"teacher", "kd", "sft", "start"}
    kd = suite.models["kd"].metrics
    answered = {"bits_per_byte", "exact_match", "pass_at_1"}
    assert set(kd) == {"nll", "perplexity", "accuracy"} | (answered if task == "causal-lm" else set())
    start = suite.score("start")
    assert start is not None
    assert kd["nll"].value < start.value
    decision = Decision.model_validate_json(read_artifact(result_of(tmp_path, "decide").outputs["decision"]))
    assert decision.verdict == "promote", decision.rules
    assert "perplexity" in done.stdout
