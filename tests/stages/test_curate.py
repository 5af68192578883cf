"""The stage that turns a teacher's answers into a checked data set."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tiny_language import WORDS, save, tiny_causal, tiny_tokenizer
from tiny_synthesis import TABLE, answer, problems, trace, write_recipe

from stillhouse.contract import (
    AnswerCounts,
    Artifact,
    DataRejected,
    NotPermitted,
    StageRequest,
    StageResult,
    SynthesisReport,
    pretty_json,
    sha256_of_file,
)
from stillhouse.data import ValidationReport, freeze, load_frozen
from stillhouse.models.answers import Answer, TokenChoices, write_answers
from stillhouse.recipe import load_recipe
from stillhouse.stages import key_of, run_stage
from stillhouse.stages.records import read_result
from stillhouse.store import open_store, save_tree
from stillhouse.teacher import CacheManifest

ROWS = problems(60)
LIMITS = {"min_kept": 5}


def _artifact(path: Path) -> Artifact:
    return Artifact(uri=f"file://{path}", sha256=sha256_of_file(path), num_bytes=path.stat().st_size)


def _frame(path: Path, *, prompted: bool = True) -> pd.DataFrame:
    rows = pd.DataFrame([json.loads(line) for line in path.read_text().splitlines()])
    plain = {"id": rows["id"], "text": rows["answer"], "prompt": rows["question"]}
    return pd.DataFrame(plain if prompted else {"id": rows["id"], "text": rows["question"]})


def _run(
    recipe: Path, shards: Sequence[Sequence[Answer]], more: dict[str, Artifact] | None = None, **overrides: Any
) -> StageResult:
    """Freeze the recipe's tables and run the stage on answers and ``more`` inputs."""
    folder, prompted = recipe.parent, "prompt_column: question" in recipe.read_text()
    inputs = dict(more or {})
    for name in ("train", "validation", "test"):
        freeze(_frame(folder / f"{name}.jsonl", prompted=prompted), folder / f"{name}.parquet")
        inputs[name] = _artifact(folder / f"{name}.parquet")
    for number, shard in enumerate(shards):
        write_answers(shard, folder / f"answers-{number}.parquet")
        counts = AnswerCounts(
            prompts=len(shard), requests=len(shard), answer_tokens=sum(a.answer_tokens for a in shard)
        )
        (folder / f"counts-{number}.json").write_bytes(pretty_json(counts))
        inputs[f"answers-{number}"] = _artifact(folder / f"answers-{number}.parquet")
        inputs[f"counts-{number}"] = _artifact(folder / f"counts-{number}.json")
    request = StageRequest(
        stage="curate",
        run_id="run-1",
        task_id="curate",
        recipe=load_recipe(recipe, overrides).model_dump(mode="json"),
        inputs=inputs,
        store=f"file://{folder / 'store'}",
    )
    return read_result(run_stage(request, work=folder / "work"))


def _output(result: StageResult, name: str) -> Path:
    return Path(result.outputs[name].uri.removeprefix("file://"))


def _traces(samples: int = 3) -> list[Answer]:
    """Return answers of which every third one is wrong, and some are too bad to learn from."""
    found = []
    for number, row in enumerate(ROWS):
        for sample in range(samples):
            words = f"Attempt {sample} of mine. "
            text = trace(row["question"], wrong=(number + sample) % 3 == 0, words=words)
            found.append(answer(row["id"], text, sample=sample))
    found[0] = answer(ROWS[0]["id"], "", sample=0)
    found[1] = answer(ROWS[0]["id"], "I can't help with that.", sample=1, finish="refusal")
    return found


def test_traces_become_a_verified_set_with_a_control_of_equal_size(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, {"kind": "traces", "samples": 3, "limits": LIMITS}, ROWS)
    answers = _traces()
    result = _run(recipe, [answers[:70], answers[70:]])
    assert set(result.outputs) == {"train", "unfiltered", "report", "validation", "docs", "card"}
    train, unfiltered = (load_frozen(_output(result, name)).to_pandas() for name in ("train", "unfiltered"))
    solutions = {row["question"]: row["answer"] for row in ROWS}
    assert all(text.endswith(f"Answer: {solutions[q]}") for q, text in zip(train["prompt"], train["text"], strict=True))
    assert list(train.columns) == ["id", "text", "prompt", "teacher"]
    assert set(train["teacher"]) == {"oracle at 127.0.0.1:9"}
    report = SynthesisReport.model_validate_json(_output(result, "report").read_bytes())
    assert report.kept == len(train) == report.rows["train"]
    removed = {count.name: count.removed for count in report.filters}
    assert (removed["empty"], removed["refusal"], removed["verification"]) == (1, 1, 59)
    assert abs(report.tokens["unfiltered"] - report.tokens["train"]) <= max(a.answer_tokens for a in answers) / 2
    assert any(
        not text.endswith(f"Answer: {solutions[q]}")
        for q, text in zip(unfiltered["prompt"], unfiltered["text"], strict=True)
    )
    assert report.audit is not None
    assert report.audit.wrong_steps == 59
    assert report.counts.prompts == len(answers)
    checks = ValidationReport.model_validate_json(_output(result, "validation").read_bytes())
    assert {check.name for check in checks.integrity} == {"leakage", "contamination"}
    assert checks.success
    assert "oracle at 127.0.0.1:9" in _output(result, "card").read_text()


def test_neither_shards_nor_their_order_change_a_byte(tmp_path: Path) -> None:
    answers = _traces()
    shuffled = random.Random(1).sample(answers, len(answers))
    digests = []
    for name, shards in (("one", [answers]), ("three", [shuffled[:20], shuffled[20:90], shuffled[90:]])):
        (tmp_path / name).mkdir()
        recipe = write_recipe(tmp_path / name, {"kind": "traces", "samples": 3, "limits": LIMITS}, ROWS)
        result = _run(recipe, shards)
        digests.append({output: artifact.sha256 for output, artifact in result.outputs.items() if output != "card"})
    assert digests[0] == digests[1]


def test_answers_are_learned_under_the_rows_own_prompt(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, {"kind": "answers", "limits": LIMITS}, ROWS)
    result = _run(recipe, [[answer(row["id"], f" It is {row['answer']}.\n") for row in ROWS]])
    assert "unfiltered" not in result.outputs
    train = load_frozen(_output(result, "train")).to_pandas()
    assert list(train["id"]) == [f"{row['id']}-0" for row in ROWS]
    assert list(train["prompt"]) == [row["question"] for row in ROWS]
    assert list(train["text"]) == [f"It is {row['answer']}." for row in ROWS]


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (
            {"max_truncated": 0.1},
            r"^20\.0% of the answers are truncated, more than synthesis\.limits\.max_truncated 10",
        ),
        ({"max_refused": 0.1}, r"^20\.0% of the answers are refused"),
        ({"max_empty": 0.1}, r"^20\.0% of the answers are empty"),
        ({"max_duplicates": 0.1}, r"^18\.3% of the answers are duplicates"),
        ({"min_kept": 60}, r"^19 answers passed all filters, fewer than synthesis\.limits\.min_kept 60; filter "),
    ],
)
def test_beyond_a_limit_the_run_stops_and_the_report_stays(
    tmp_path: Path, limits: dict[str, float], message: str
) -> None:
    lenient = {"max_truncated": 1, "max_refused": 1, "max_empty": 1, "max_duplicates": 1, "min_kept": 1}
    synthesis = {"kind": "answers", "samples": 1, "limits": lenient | limits}
    rows = [{**row, "question": "What is it?"} if number % 4 == 0 else row for number, row in enumerate(ROWS)]
    recipe = write_recipe(tmp_path, synthesis, rows, checks={"min_rows": 10})
    answers = []
    for number, row in enumerate(rows):
        text = "the same words as all" if number % 4 == 0 else f"a sum of {row['answer']}"
        finish = "length" if number % 5 == 1 else "refusal" if number % 5 == 2 else "stop"
        answers.append(answer(row["id"], "" if number % 5 == 3 else text, finish=finish))
    with pytest.raises(DataRejected, match=message):
        _run(recipe, [answers])
    stored = {path.name for path in (tmp_path / "store").glob("stages/curate/*/*")}
    assert {"report.json", "validation.json", "card.md", "docs"} <= stored
    assert "result.json" not in stored


def test_passages_are_plain_texts_and_the_best_rated_stay(tmp_path: Path) -> None:
    synthesis = {"kind": "textbook", "passages": 120, "limits": LIMITS, "rating": {"prompt": "Rate: {text}"}}
    topics = [{"id": f"t{n}", "question": f"topic number {n}", "answer": ""} for n in range(20)]
    recipe = write_recipe(tmp_path, synthesis, topics, prompted=False)
    rng = random.Random(2)
    answers = []
    for number in range(120):
        fine = number % 2 == 0
        words = rng.choices("proof lemma because".split() if fine else "so it goes on".split(), k=20)
        text = f"passage {number} " + " ".join(rng.sample([*words, *map(str, rng.choices(range(999), k=20))], 40))
        review = ("5" if fine else "2") if number % 3 == 0 else None
        answers.append(answer(f"t{number % 20}", text, sample=number // 20, review=review))
    result = _run(recipe, [answers], **{"synthesis.filters.max_repetition": 1})
    train = load_frozen(_output(result, "train")).to_pandas()
    assert list(train.columns) == ["id", "text", "teacher"]
    report = SynthesisReport.model_validate_json(_output(result, "report").read_bytes())
    assert report.rating is not None
    assert report.rating.rated == 40
    assert report.rating.mean_kept > report.rating.mean
    assert report.kept == len(train) == 60
    assert sum(int(text.split()[1]) % 2 == 0 for text in train["text"]) > 50
    assert "Quality filter" in _output(result, "card").read_text()


def test_rationales_come_beside_the_labels(tmp_path: Path) -> None:
    synthesis = {"kind": "rationales", "limits": LIMITS, "filters": {"min_words": 3}}
    recipe = write_recipe(tmp_path, synthesis, ROWS)
    answers = [answer(row["id"], "too short" if n < 6 else f"Since it is {n}.") for n, row in enumerate(ROWS)]
    result = _run(recipe, [answers])
    train = load_frozen(_output(result, "train")).to_pandas()
    assert list(train.columns) == ["id", "text", "prompt", "teacher", "weight"]
    labels = train[train["id"].str.endswith("-label")]
    assert (len(labels), len(train)) == (60, 114)
    assert list(labels["text"]) == [row["answer"] for row in ROWS]
    assert train["weight"].sum() == pytest.approx(60)


def test_what_the_test_set_has_is_left_out_of_both_sets(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, {"kind": "textbook", "limits": LIMITS, "passages": 60}, ROWS, prompted=False)
    leaks = [json.loads(line)["question"] for line in (tmp_path / "test.jsonl").read_text().splitlines()][:9]
    texts = [*leaks[:5], *(f"{leak} Indeed" for leak in leaks[5:]), *(f"Number {n} is a fine one." for n in range(51))]
    answers = [answer(row["id"], text) for row, text in zip(ROWS, texts, strict=True)]
    near = {"data.contamination.ngram": 1, "data.contamination.threshold": 0.8}
    result = _run(recipe, [answers], **near, **{"synthesis.filters.duplicates": "keep"})
    for name in ("train", "unfiltered"):
        written = load_frozen(_output(result, name))["text"][:]
        assert not any(leak in text for leak in leaks for text in written)
    checks = ValidationReport.model_validate_json(_output(result, "validation").read_bytes())
    assert (checks.dropped["train"].held_out, checks.dropped["train"].contaminated) == (5, 4)
    assert [(check.name, check.outcome) for check in checks.integrity] == [
        ("leakage", "pass"),
        ("contamination", "pass"),
    ]
    with pytest.raises(DataRejected, match="near-duplicate in test"):
        _run(
            recipe, [answers], **near, **{"data.contamination.action": "reject", "synthesis.filters.duplicates": "keep"}
        )


def test_coverage_of_a_reference_is_measured_on_what_was_written(tmp_path: Path) -> None:
    rows = problems(120)
    reference = [{"id": str(n), "question": f"Quite other words about ships {n}", "answer": "none"} for n in range(120)]
    (tmp_path / "reference.jsonl").write_text("".join(json.dumps(row) + "\n" for row in reference))
    coverage = {"reference": {**TABLE, "source": {"kind": "path", "path": "reference.jsonl"}}, "action": "reject"}
    recipe = write_recipe(tmp_path, {"kind": "answers", "limits": LIMITS}, rows, coverage=coverage)
    with pytest.raises(DataRejected, match="of the reference texts is covered"):
        _run(recipe, [[answer(row["id"], f"It is {row['answer']}.") for row in rows]])


def test_another_filter_or_limit_makes_another_set_and_another_price_does_not(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, {"kind": "answers", "limits": LIMITS}, ROWS)

    def key(**overrides: Any) -> str:
        dotted = {name.replace("__", "."): value for name, value in overrides.items()}
        document = load_recipe(recipe, dotted).model_dump(mode="json")
        return key_of(
            StageRequest(stage="curate", run_id="r", task_id="curate", recipe=document, store="file:///nowhere")
        )

    assert key(synthesis__filters__min_words=2) != key() != key(synthesis__limits__min_kept=6)
    assert key(teacher__api__concurrency=2, teacher__api__prices__answer=9, training__epochs=1) == key()


def test_generated_code_runs_only_where_it_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"id": f"r{n}", "question": f"Write f that adds {n}.", "answer": f"assert f(1) == {n + 1}"} for n in range(12)
    ]
    synthesis = {"kind": "traces", "samples": 1, "verifier": {"kind": "unit-tests", "seconds": 1}, "limits": LIMITS}
    recipe = write_recipe(tmp_path, synthesis, rows)
    programs = [f"```python\ndef f(x):\n    return x + {n + (n % 4 == 0)}\n```" for n in range(12)]
    answers = [answer(row["id"], f"So:\n{program}") for row, program in zip(rows, programs, strict=True)]
    with pytest.raises(NotPermitted, match="set STILLHOUSE_RUN_GENERATED_CODE=1"):
        _run(recipe, [answers])
    monkeypatch.setenv("STILLHOUSE_RUN_GENERATED_CODE", "1")
    result = _run(recipe, [answers], **{"data.checks.min_rows": 5})
    kept = load_frozen(_output(result, "train"))["id"][:]
    assert kept == [f"r{n}-0" for n in range(12) if n % 4]


def test_what_a_server_said_about_its_tokens_becomes_a_cache(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, {"kind": "answers", "limits": LIMITS}, ROWS)
    folder = save(tiny_causal(), tiny_tokenizer(), tmp_path / "start")
    answers = []
    for number, row in enumerate(ROWS):
        words = [*random.Random(number).choices(WORDS, k=3), WORDS[number % len(WORDS)]]
        said = tuple(TokenChoices(token=word, alternatives={word: -0.1, WORDS[0]: -3.0}) for word in words)
        answers.append(replace(answer(row["id"], " ".join(words)), choices=said))
    grey = {"teacher.api.top_logprobs": 2, "distillation.alpha": 0.5, "distillation.temperature": 1.0}
    start = {"start": save_tree(open_store(f"file://{tmp_path / 'models'}"), "start", folder)}
    result = _run(recipe, [answers], more=start, **grey, **{"training.max_tokens": 32})
    manifest = CacheManifest.model_validate_json((_output(result, "cache") / "manifest.json").read_bytes())
    assert manifest.identity.data_sha256 == result.outputs["train"].sha256
    assert manifest.num_rows == 60
    assert manifest.num_targets
