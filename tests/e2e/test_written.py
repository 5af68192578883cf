"""Whole workflows in which the teacher writes what the student learns, as ``stillhouse run`` runs them."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from runs import results, run_in_process
from tiny_language import write_language_workflow

from stillhouse.contract import Decision, ExitCode, StageResult, SynthesisReport
from stillhouse.data.frozen import load_frozen
from stillhouse.models.answers import read_answers
from stillhouse.store import fetch_artifact, read_artifact

pytestmark = pytest.mark.slow

LIMITS = {"max_refused": 1, "max_truncated": 1, "max_empty": 1, "max_duplicates": 1, "min_kept": 5}
LOOSE = {"truncated": "keep", "max_repetition": 1.0}


POLICY = """\
name: tiny
description: For tests, only the data must be sound.
rules:
  - {kind: integrity, name: sound, checks: [terms, leakage]}
"""


def write_recipe(folder: Path, synthesis: dict[str, Any]) -> Path:
    folder.mkdir()
    common = {"samples": 2, "max_new_tokens": 8, "limits": LIMITS, "filters": LOOSE}
    recipe = write_language_workflow(folder, distillation={"alpha": 1.0}, synthesis=common | synthesis)
    policy = (
        "name: tiny\ndescription: For tests.\nrules:\n  - {kind: integrity, name: sound, checks: [terms, leakage]}\n"
    )
    (folder / "policy.yaml").write_text(policy)
    return recipe


def found(root: Path, stage: str) -> list[StageResult]:
    return [result for result in results(root).values() if result.stage == stage]


def keys(root: Path, stage: str) -> set[str]:
    return {path.parent.name for path in root.glob(f"store/stages/{stage}/*/result.json")}


@pytest.mark.parametrize(
    "synthesis",
    [
        {"kind": "answers", "controls": ["unfiltered", "sft"]},
        {"kind": "rationales", "samples": 1, "controls": ["sft"]},
    ],
    ids=["answers", "rationales"],
)
def test_a_student_learns_what_the_teacher_wrote(synthesis: dict[str, Any], tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "tiny", synthesis)

    done = run_in_process(recipe, tmp_path)

    assert done.returncode == ExitCode.NOT_PROMOTED, done.stderr  # there is no MLflow server
    (curated,) = found(tmp_path, "curate")
    report = SynthesisReport.model_validate_json(read_artifact(curated.outputs["report"]))
    arms = {result.parameters["arm"]: result for result in found(tmp_path, "distill")}
    assert set(arms) == {"kd", *synthesis["controls"]}
    assert arms["kd"].inputs["train"] == curated.outputs["train"]
    (validated,) = found(tmp_path, "validate")
    assert arms["sft"].inputs["train"] == validated.outputs["train"]
    rows = load_frozen(fetch_artifact(curated.outputs["train"], tmp_path / "look"))
    assert len(rows) == report.rows["train"] > 0
    assert set(rows["teacher"]) - {""} == {"teacher"}  # labels of rationales were written by nobody
    (decided,) = found(tmp_path, "decide")
    decision = Decision.model_validate_json(read_artifact(decided.outputs["decision"]))
    assert decision.verdict == "promote", decision.rules
    assert "What the teacher wrote" in read_artifact(decided.outputs["report"]).decode()


def test_another_filter_asks_nothing_again(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "tiny", {"kind": "answers"})
    assert run_in_process(recipe, tmp_path).returncode == ExitCode.NOT_PROMOTED
    asked = keys(tmp_path, "generate")
    document = yaml.safe_load(recipe.read_text())
    document["synthesis"]["filters"]["max_words"] = 4
    recipe.write_text(yaml.safe_dump(document))

    assert run_in_process(recipe, tmp_path).returncode == ExitCode.NOT_PROMOTED

    assert keys(tmp_path, "generate") == asked
    assert len(keys(tmp_path, "curate")) == 2


def test_shards_do_not_change_what_is_written(tmp_path: Path) -> None:
    written = []
    for shards in (1, 3):
        root = tmp_path / str(shards)
        root.mkdir()
        recipe = write_recipe(root / "tiny", {"kind": "answers"})
        document = yaml.safe_load(recipe.read_text())
        document["teacher"]["shards"] = shards
        recipe.write_text(yaml.safe_dump(document))
        assert run_in_process(recipe, root).returncode == ExitCode.NOT_PROMOTED
        paths = [fetch_artifact(r.outputs["answers"], root / "look") for r in found(root, "generate")]
        answers = sorted(read_answers(paths), key=lambda answer: (answer.prompt.row, answer.prompt.sample))
        written.append([(a.prompt.row, a.prompt.sample, a.text) for a in answers])
        written.append([result.outputs["train"].sha256 for result in found(root, "curate")])
    assert written[0] == written[2]
    assert written[1] == written[3]
