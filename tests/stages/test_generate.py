"""The stage that asks the teacher: shards, reviews, bounds, and what must not ask again."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from teacher_server import MODEL, Teacher, teacher_server
from tiny_language import write_language_workflow

from stillhouse.contract import AnswerCounts, DataRejected, StageRequest, StageResult
from stillhouse.data.frozen import freeze
from stillhouse.models.answers import Answer, read_answers
from stillhouse.recipe import load_recipe
from stillhouse.stages import key_of, run_stage
from stillhouse.stages.records import read_result
from stillhouse.store import fetch_artifact, open_store, read_artifact, save_file, save_tree

ROWS = 7
LOOSE = {"max_refused": 1.0, "max_truncated": 1.0, "max_empty": 1.0}


@pytest.fixture
def teacher() -> Iterator[Teacher]:
    with teacher_server() as running:
        yield running


Ask = Callable[..., StageRequest]


@pytest.fixture
def request_of(teacher: Teacher, tmp_path: Path) -> Ask:
    """Return what makes a request for one shard; ``changes`` are sections of the synthesis."""
    store = open_store(str(tmp_path / "store"))
    frame = pd.DataFrame(
        {
            "id": [f"r{i}" for i in range(ROWS)],
            "text": [f"{i}" for i in range(ROWS)],
            "prompt": [f"good film {i}" for i in range(ROWS)],
        }
    )
    freeze(frame, tmp_path / "train.parquet")
    train = save_file(store, "train.parquet", tmp_path / "train.parquet")
    (tmp_path / "tiny").mkdir()

    def make(
        shard: int = 0, shards: int = 1, *, local: bool = False, api: dict[str, Any] | None = None, **changes: Any
    ) -> StageRequest:
        synthesis = {"kind": "answers", "max_new_tokens": 4, "temperature": 0.0, "limits": LOOSE, "controls": []}
        server = {"base_url": teacher.url, "model": MODEL, **(api or {})}
        path = write_language_workflow(
            tmp_path / "tiny",
            teacher={"source": {"kind": "path", "path": "teacher"}, "licence": "CC0-1.0"}
            if local
            else {"api": server, "licence": "CC0-1.0", "terms": {"provider": "self-hosted"}},
            student={"source": {"kind": "path", "path": "teacher"}, "layers": 2},
            distillation={"alpha": 1.0},
            synthesis=synthesis | changes,
        )
        weights = {"teacher": save_tree(store, "teacher", tmp_path / "tiny" / "teacher")} if local else {}
        return StageRequest(
            stage="generate",
            run_id="run-1",
            task_id=f"generate-{shard}",
            recipe=load_recipe(path).model_dump(mode="json"),
            parameters={"shard": shard, "shards": shards},
            inputs={"train": train, **weights},
            store=store.root,
        )

    return make


def run(request: StageRequest, tmp_path: Path) -> tuple[list[Answer], AnswerCounts, StageResult]:
    result = read_result(run_stage(request, work=tmp_path / "work"))
    answers = read_answers([fetch_artifact(result.outputs["answers"], tmp_path)])
    return answers, AnswerCounts.model_validate_json(read_artifact(result.outputs["counts"])), result


def test_shards_share_the_prompts_and_together_ask_each_once(request_of: Ask, teacher: Teacher, tmp_path: Path) -> None:
    shards = [run(request_of(shard, 3), tmp_path) for shard in range(3)]
    assert [[answer.prompt.row for answer in answers] for answers, _, _ in shards] == [
        ["r0", "r3", "r6"],
        ["r1", "r4"],
        ["r2", "r5"],
    ]
    assert sorted(teacher.asked.values()) == [1] * ROWS
    whole, counts, result = run(request_of(), tmp_path)  # a run without shards finds all of them
    assert len(whole) == result.metrics["answers.from_ledger"] == ROWS
    assert result.metrics["answers.requests"] == counts.from_ledger == 0
    assert sum(teacher.asked.values()) == ROWS


def test_a_judge_reviews_in_a_second_round(request_of: Ask, teacher: Teacher, tmp_path: Path) -> None:
    judge = {"kind": "judge", "prompt": "Is {answer} right for {question}?"}
    prompt = "{problem} now"
    asked = request_of(kind="traces", samples=2, temperature=0.9, prompt=prompt, verifier=judge)
    answers, counts, _ = run(asked, tmp_path)
    assert len(answers) == 2 * ROWS
    written = [answer for answer in answers if answer.text.strip()]
    assert all((answer.review is not None) == (answer in written) for answer in answers)
    assert counts.prompts == 2 * ROWS + len(written)
    greedy = [body for body in teacher.bodies if body["temperature"] == 0]
    assert {body["messages"][0]["content"][:3] for body in greedy} == {"Is "}


def test_a_teacher_on_this_machine_writes_the_same_way(request_of: Ask, teacher: Teacher, tmp_path: Path) -> None:
    answers, _, result = run(request_of(local=True), tmp_path)
    assert [answer.prompt.row for answer in answers] == [f"r{i}" for i in range(ROWS)]
    assert result.metrics["answers.requests"] == ROWS
    assert not teacher.bodies


def test_too_many_truncations_stop_the_stage_as_soon_as_that_is_certain(
    request_of: Ask, teacher: Teacher, tmp_path: Path
) -> None:
    asked = request_of(max_new_tokens=1, api={"concurrency": 1}, limits=LOOSE | {"max_truncated": 0.3})
    with pytest.raises(DataRejected, match=r"3 of 3 answers so far are truncated: more than 30% of 7.*max_truncated"):
        run(asked, tmp_path)
    assert len(teacher.bodies) == 3
    # The bound is no part of the questions: with another one the three are known.
    _, counts, result = run(request_of(max_new_tokens=1), tmp_path)
    assert counts.truncated == ROWS
    assert (result.metrics["answers.from_ledger"], result.metrics["answers.requests"]) == (3, ROWS - 3)


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"filters": {"min_words": 3}}, True),
        ({"limits": {"max_refused": 0.5}}, True),
        ({"controls": ["sft"]}, True),
        ({"api": {"concurrency": 3, "attempts": 2, "ceiling": {"requests": 9}}}, True),
        ({"api": {"top_logprobs": 2}}, False),
        ({"api": {"model": "another"}}, False),
        ({"system": "Be brief."}, False),
        ({"max_new_tokens": 9}, False),
        ({"prompt": "So: {prompt}"}, False),
    ],
)
def test_the_key_holds_what_decides_the_answers(request_of: Ask, changes: dict[str, Any], same: bool) -> None:
    assert (key_of(request_of()) == key_of(request_of(**changes))) is same


def test_ratings_and_judges_are_asked_but_filters_on_them_are_not(request_of: Ask) -> None:
    def traces(**verifier: Any) -> str:
        return key_of(request_of(kind="traces", samples=1, verifier=verifier))

    judge = {"kind": "judge", "prompt": "{question} {answer}?"}
    assert traces(**judge) != traces(**judge | {"prompt": "{question} {answer} !"})
    assert traces(**judge) == traces(**judge, accept="right")
    assert traces(kind="numeric") == traces(kind="numeric", tolerance=0.1)
