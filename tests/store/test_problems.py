"""Problems of the real library: made once, the same for the same parameters, and verifiable."""

import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

from stillhouse.contract import ConfigurationError
from stillhouse.recipe import ReasoningSource
from stillhouse.store import fetch_source, fingerprint_source, problems

SUMS: dict[str, Any] = {"task": "chain_sum", "options": {"min_terms": 2, "max_terms": 4, "max_digits": 2}}


def source(**changes: Any) -> ReasoningSource:
    return ReasoningSource.model_validate(SUMS | {"size": 20, "seed": 5} | changes)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_problems_have_ids_questions_answers_and_a_difficulty(tmp_path: Path) -> None:
    rows = rows_of(fetch_source(source(), tmp_path))
    assert [row["id"] for row in rows] == [f"chain_sum-5-{number}" for number in range(20)]
    for row in rows:
        terms = row["question"].partition(":")[2].strip(" =")
        assert int(row["answer"]) == eval(terms)  # noqa: S307 - numbers and signs of the library
        count = len(terms.replace("+", "-").split("-"))
        assert f"num_terms {count}" in row["difficulty"]
    assert len({row["difficulty"] for row in rows}) > 2


def test_problems_are_made_once_for_the_same_parameters(tmp_path: Path) -> None:
    path = fetch_source(source(), tmp_path)
    written = path.stat().st_mtime_ns
    assert fetch_source(source(), tmp_path) == path
    assert path.stat().st_mtime_ns == written
    others = [fetch_source(source(**change), tmp_path) for change in ({"seed": 6}, {"size": 21}, {"options": {}})]
    assert len({other.read_bytes() for other in (path, *others)}) == 4
    assert rows_of(others[1])[:20] == rows_of(path)


def test_near_seeds_share_hardly_a_problem(tmp_path: Path) -> None:
    sets = [
        {row["question"] for row in rows_of(fetch_source(source(seed=seed, options={"min_digits": 4}), tmp_path))}
        for seed in (5, 6, 7)
    ]
    assert all(len(questions) == 20 for questions in sets)
    assert not sets[0] & sets[1]
    assert not sets[1] & sets[2]


def test_another_process_makes_the_same_bytes(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from stillhouse.recipe import ReasoningSource;"
        "from stillhouse.store import fetch_source;"
        "fetch_source(ReasoningSource.model_validate_json(sys.argv[1]), Path(sys.argv[2]))"
    )
    command = [sys.executable, "-W", "always", "-c", code, source().model_dump_json(), str(tmp_path / "other")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (theirs,) = (tmp_path / "other").rglob("*.jsonl")
    assert theirs.read_bytes() == fetch_source(source(), tmp_path / "mine").read_bytes()
    assert "SyntaxWarning" not in done.stderr


def test_a_damaged_file_is_made_again(tmp_path: Path) -> None:
    path = fetch_source(source(), tmp_path)
    before = path.read_bytes()
    path.write_bytes(before[:50])
    assert fetch_source(source(), tmp_path).read_bytes() == before


def test_a_fingerprint_follows_parameters_and_release(monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint_source(source())
    assert fingerprint_source(source()) == before
    assert fingerprint_source(source(seed=6)) != before
    monkeypatch.setattr(problems, "version", lambda _: "0.0.1")
    assert fingerprint_source(source()) != before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "no_such_task"}, "no data set 'no_such_task'"),
        ({"options": {"nonsense": 1}}, "chain_sum: reasoning-gym refuses these options"),
        ({"options": {"min_terms": 0}}, "min_terms must be positive"),
    ],
)
def test_a_task_or_an_option_that_the_library_lacks_is_a_wrong_recipe(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        fetch_source(source(**changes), tmp_path)
    assert list(tmp_path.rglob("*.jsonl")) == []


def test_without_the_library_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(problems, "version", absent)
    with pytest.raises(ConfigurationError, match=r"install stillhouse\[reasoning\]"):
        fetch_source(source(), tmp_path)


@pytest.mark.parametrize("task", ["gsm_symbolic", "letter_counting", "coin_flip"])
def test_other_tasks_keep_what_the_library_says_about_difficulty(tmp_path: Path, task: str) -> None:
    rows = rows_of(fetch_source(source(task=task, options={}, size=3), tmp_path))
    assert all(isinstance(row["answer"], str) and row["answer"] for row in rows)
    assert all(isinstance(row["difficulty"], str | int | float) for row in rows)
    assert all(len(str(row["difficulty"])) < 64 for row in rows)
