"""Whole workflows of language models, as ``stillhouse run`` runs them."""

from pathlib import Path

import pytest
import yaml
from runs import results, run_in_process
from tiny_language import LANGUAGE_POLICY, write_language_workflow, write_quiz

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


def test_a_task_of_the_harness_is_a_suite_that_the_gate_and_the_report_know(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    folder.mkdir()
    recipe = write_language_workflow(folder)
    write_quiz(folder / "quiz", items=60)
    document = yaml.safe_load(recipe.read_text())
    document["evaluation"] = {
        "resamples": 200,
        "latency_items": 10,
        "harness": {"tasks": ["Tiny_Quiz"], "source": {"kind": "path", "path": "quiz"}, "num_fewshot": 1},
    }
    recipe.write_text(yaml.safe_dump(document))
    rules = "  - {kind: minimum-items, name: enough-questions, suites: benchmark, items: 61}\n"
    (folder / "policy.yaml").write_text(LANGUAGE_POLICY + rules)
    done = run_in_process(recipe, tmp_path)
    assert done.returncode == ExitCode.NOT_PROMOTED, done.stderr
    summary = EvaluationSummary.model_validate_json(read_artifact(result_of(tmp_path, "evaluate").outputs["summary"]))
    words, quiz = summary.suites
    assert (words.metric, quiz.metric, quiz.kind, quiz.num_items) == ("nll", "accuracy", "benchmark", 60)
    decided = result_of(tmp_path, "decide").outputs
    decision = Decision.model_validate_json(read_artifact(decided["decision"]))
    (rule,) = (rule for rule in decision.rules if rule.rule == "enough-questions")
    assert rule.outcome != "pass"
    assert decision.verdict == "inconclusive"
    for output in ("report", "card", "model-card"):
        assert "tiny-quiz" in read_artifact(decided[output]).decode()
    assert "tiny-quiz" in done.stdout
