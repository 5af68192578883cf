"""The capacity-gap preflight: its arithmetic on planted figures, its probes on a workflow in miniature."""

import io
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grimp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from tiny import write_csv, write_teacher, write_workflow
from tiny_language import WORDS, save, texts, tiny_causal, tiny_masked, tiny_tokenizer

from stillhouse.contract import (
    ConfigurationError,
    Preflight,
    PreflightPointer,
    Progress,
    latest_key,
    preflight_key,
    pretty_json,
    sha256_of,
    subject_of,
)
from stillhouse.data import load_frozen, load_tables
from stillhouse.recipe import Recipe, load_recipe, parse_recipe
from stillhouse.store import ObjectStore, fetch_source, open_store
from stillhouse.training import prepare_teacher
from stillhouse.training.preflight import preflight, render
from stillhouse.training.preflight.candidates import Candidate, candidates
from stillhouse.training.preflight.crossed import crossed_mean
from stillhouse.training.preflight.forecast import foretell
from stillhouse.training.preflight.probe import Measured
from stillhouse.training.preflight.run import CODE

SMALL = {"rows": 32, "items": 24, "epochs": 1.0, "repeats": 3, "assistants": []}


def ones(count: int) -> np.ndarray:
    return np.ones(count)


def places(count: int) -> np.ndarray:
    return np.arange(count)


def test_without_luck_of_the_training_the_error_is_that_of_the_items() -> None:
    differences_N = np.random.default_rng(0).normal(0.1, 1, 50)
    mean = crossed_mean(np.tile(differences_N, (3, 1)), ones(50), places(50), least=0)
    assert mean.value == pytest.approx(differences_N.mean())
    assert mean.standard_error == pytest.approx(differences_N.std(ddof=1) / 50**0.5)
    assert mean.degrees == pytest.approx(49)


def test_without_luck_of_the_items_the_error_is_that_of_the_trainings() -> None:
    mean = crossed_mean(np.tile([[0.1], [0.2], [0.6]], 40), ones(40), places(40), least=0)
    assert mean.value == pytest.approx(0.3)
    assert mean.standard_error == pytest.approx(np.std([0.1, 0.2, 0.6], ddof=1) / 3**0.5)
    assert mean.degrees == pytest.approx(2)


def test_items_that_share_a_source_are_no_more_evidence_than_their_source() -> None:
    values_RN = np.random.default_rng(1).normal(0, 1, (3, 30))
    plain = crossed_mean(values_RN, ones(30), places(30), least=0)
    copied = crossed_mean(np.repeat(values_RN, 4, axis=1), ones(120), np.repeat(places(30), 4), least=0)
    assert copied.value == pytest.approx(plain.value)
    assert copied.standard_error == pytest.approx(plain.standard_error)


def test_a_mean_over_tokens_weighs_long_items_more() -> None:
    mean = crossed_mean(np.asarray([[2.0, 9.0], [2.0, 9.0]]), np.asarray([1.0, 3.0]), places(2), least=0)
    assert mean.value == pytest.approx(11 / 4)


def planted(rng: np.random.Generator, *, gain: float, luck: float, repeats: int = 3, items: int = 200) -> np.ndarray:
    """Return differences of -1, 0 and 1 whose mean varies by training and by item around ``gain``."""
    drift_R1 = gain + rng.normal(0, luck, (repeats, 1))
    lean_N = rng.normal(0, 0.1, items)
    share_RN = np.clip(np.abs(drift_R1 + lean_N), 0, 1)
    return (rng.random((repeats, items)) < share_RN) * np.sign(drift_R1 + lean_N)


def claims(*, gain: float, luck: float, rounds: int = 400) -> float:
    rng = np.random.default_rng(7)
    found = 0
    for _ in range(rounds):
        values_RN = planted(rng, gain=gain, luck=luck)
        estimate = crossed_mean(values_RN, ones(200), places(200), least=1).estimate(0.95)
        found += estimate.low > 0 or estimate.high < 0
    return found / rounds


@pytest.mark.parametrize("luck", [0.0, 0.02, 0.1])
def test_no_gain_is_seldom_called_one_however_much_trainings_differ(luck: float) -> None:
    assert claims(gain=0, luck=luck) <= 0.08


def test_a_plain_gain_is_found() -> None:
    assert claims(gain=0.1, luck=0.01) > 0.9


@pytest.mark.parametrize(("wins", "beyond_doubt"), [(3, False), (4, False), (12, True)])
def test_a_handful_of_items_proves_nothing(wins: int, beyond_doubt: bool) -> None:
    """Four wins and no loss have p = 0.125 in McNemar's exact test, twelve have p < 0.001."""
    values_RN = np.zeros((3, 1000))
    values_RN[:, :wins] = 1
    assert (crossed_mean(values_RN, ones(1000), places(1000), least=1).estimate(0.95).low > 0) is beyond_doubt


def candidate(teacher: str = "teacher", **changes: Any) -> Candidate:
    plain = {"source": {"kind": "path", "path": "teacher"}, "keep": None, "teacher_layers": 4, "student_layers": 2}
    return Candidate(teacher=teacher, **(plain | changes))


def answers(*, repeats: int = 3, items: int = 400, seed: int = 0, **shares: float) -> list[Measured]:
    """Return made-up records: each model is right on its share of the items, and the better it is, on more of them."""
    shares = {"guess": 0.5, "teacher": 0.9, "sft": 0.8, "kd": 0.8} | shares
    found = []
    for repeat in range(repeats):
        luck_N = np.random.default_rng([seed, repeat]).random(items)
        tables = [
            pa.table(
                {
                    "model": pa.repeat(model, items),
                    "group": [f"i{i}" for i in range(items)],
                    "correct": luck_N < share,
                    "loss": np.where(luck_N < share, 1.0, 5.0),
                    "targets": pa.repeat(2, items),
                }
            )
            for model, share in shares.items()
        ]
        found.append(
            Measured(records=pa.concat_tables(tables), teacher_parameters=9, student_parameters=4, student_layers=2)
        )
    return found


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workflow whose teacher is fine-tuned first."""
    folder = tmp_path_factory.mktemp("preflight") / "tiny"
    folder.mkdir()
    return write_workflow(folder)


def recipe_of(path: Path, **preflight: Any) -> Recipe:
    return load_recipe(path, {"preflight": SMALL | preflight})


def foretold(recipe: Recipe, *found: tuple[Candidate, list[Measured]]) -> Preflight:
    return foretell(recipe, found, rows=100, train_rows=1000)


@pytest.mark.parametrize(
    ("kd", "outlook"), [(0.87, "likely"), (0.73, "unlikely"), (0.8, "open"), (0.802, "open"), (0.798, "open")]
)
def test_the_outlook_says_no_more_than_the_interval(tiny: Path, kd: float, outlook: str) -> None:
    own = foretold(recipe_of(tiny), (candidate(), answers(kd=kd))).own
    assert own.outlook == outlook
    assert {"likely": own.gain.low > 0, "unlikely": own.gain.high < 0}.get(outlook, own.gain.low < 0 < own.gain.high)
    assert own.gain.value == pytest.approx(np.mean(own.gains))
    assert own.problem is None


@settings(deadline=None, max_examples=25)
@given(kd=st.floats(0.1, 0.9), sft=st.floats(0.1, 0.9), seed=st.integers(0, 50))
def test_to_swap_the_arms_is_to_turn_the_prediction_round(tiny: Path, kd: float, sft: float, seed: int) -> None:
    recipe = recipe_of(tiny)
    one, other = (
        foretold(recipe, (candidate(), answers(items=60, seed=seed, kd=a, sft=b))).own
        for a, b in ((kd, sft), (sft, kd))
    )
    assert one.gain.value == pytest.approx(-other.gain.value)
    assert one.gain.low == pytest.approx(-other.gain.high)
    assert one.probability == pytest.approx(1 - other.probability)


def test_less_loss_is_a_gain(tiny: Path) -> None:
    plain = load_recipe(tiny).model_dump()
    plain["data"] = plain["data"] | {"labels": ()}
    language = parse_recipe(plain | {"task": "masked-lm"}, base=Path("/"))
    prediction = foretold(language, (candidate(), answers(kd=0.9)))
    assert prediction.metric == "nll"
    assert prediction.own.outlook == "likely"
    assert prediction.own.gain.value > 0
    assert prediction.own.scores["kd"].value < prediction.own.scores["sft"].value


def test_a_teacher_that_knows_nothing_is_the_first_problem(tiny: Path) -> None:
    used_as_it_is = recipe_of(tiny)
    used_as_it_is = used_as_it_is.model_copy(
        update={"teacher": used_as_it_is.teacher.model_copy(update={"finetune": None})}
    )
    found = (candidate(), answers(teacher=0.5, kd=0.87))
    prediction = foretold(used_as_it_is, found)
    assert prediction.own.outlook == "unlikely"
    assert prediction.conclusion.startswith("The teacher is not measurably better than guessing")


def test_a_teacher_that_the_budget_taught_nothing_leaves_all_open(tiny: Path) -> None:
    own = foretold(recipe_of(tiny), (candidate(), answers(teacher=0.5, kd=0.87))).own
    assert own.outlook == "open"
    assert "raise preflight.rows" in (own.problem or "")


@pytest.mark.parametrize(
    ("assistant", "best", "resolved", "recommended"),
    [
        (0.9, "assistant-3", True, "assistant-3"),
        (0.802, "assistant-3", False, "teacher"),
        (0.7, "teacher", True, "teacher"),
        (0.798, "teacher", False, "teacher"),
    ],
)
def test_another_teacher_is_recommended_only_beyond_doubt(
    tiny: Path, assistant: float, best: str, resolved: bool, recommended: str
) -> None:
    found = [(candidate(), answers()), (candidate("assistant-3", keep=3), answers(kd=assistant))]
    choice = foretold(recipe_of(tiny), *found).choice
    assert choice is not None
    assert (choice.best, choice.resolved, choice.recommended) == (best, resolved, recommended)


def test_more_candidates_ask_for_more_evidence_of_each(tiny: Path) -> None:
    def interval(count: int) -> float:
        others = [(candidate(f"assistant-{n}"), answers(kd=0.82)) for n in range(count)]
        choice = foretold(recipe_of(tiny), (candidate(), answers()), *others).choice
        assert choice is not None
        return choice.advantages["assistant-0"].high - choice.advantages["assistant-0"].low

    assert interval(4) > 1.1 * interval(1)


def test_another_size_of_student_is_no_other_teacher(tiny: Path) -> None:
    found = [(candidate(), answers()), (candidate(student_layers=1), answers(kd=0.9))]
    prediction = foretold(recipe_of(tiny), *found)
    assert prediction.choice is None
    assert [probe.outlook for probe in prediction.probes] == ["open", "likely"]


def test_an_assistant_halfway_is_tried_without_being_asked_for(tiny: Path, tmp_path: Path) -> None:
    found = candidates(recipe_of(tiny, assistants=None, student_layers=[2, 1]), tmp_path)
    assert [(c.teacher, c.teacher_layers, c.student_layers) for c in found] == [
        ("teacher", 4, 2),
        ("assistant-3", 3, 2),
        ("teacher", 4, 1),
    ]


@pytest.mark.parametrize(
    ("preflight_config", "reason"),
    [
        ({"assistants": [4]}, "4 layers of a teacher of 4"),
        ({"assistants": [1]}, "a student of 2 layers can't start from assistant-1"),
        ({"student_layers": [5]}, "a student of 5 layers can't start from teacher"),
    ],
)
def test_what_can_not_be_built_is_refused_before_anything_is_trained(
    tiny: Path, tmp_path: Path, preflight_config: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        candidates(recipe_of(tiny, **preflight_config), tmp_path)


def test_a_probe_is_the_recipe_with_another_budget_and_seeds(tiny: Path) -> None:
    recipe = load_recipe(tiny, {"preflight": SMALL, "student": {"layers": 2, "layer_map": [0, 3]}})
    own = candidate(source=recipe.teacher.source).recipe_of(recipe, 2)
    assert own.training == recipe.training.model_copy(update={"epochs": 1.0, "seed": recipe.training.seed + 2})
    assert own.student == recipe.student.model_copy(update={"seed": recipe.student.seed + 2})
    assert own.distillation == recipe.distillation
    smaller = candidate(source=recipe.teacher.source, student_layers=1).recipe_of(recipe, 0)
    assert (smaller.student.layers, smaller.student.layer_map) == (1, None)


class Stop(Exception):
    """As sudden as a kill, as far as anything outside this process can tell."""


def stop_at(number: int) -> Callable[[str, Progress], None]:
    """Fail when the ``number``-th training of a student with a teacher begins."""
    begun = []

    def tell(doing: str, progress: Progress) -> None:
        if doing.endswith("learns, kd") and (not begun or begun[-1] != progress.done):
            begun.append(progress.done)
        if len(begun) == number:
            raise Stop

    return tell


def watch(done: list[str]) -> Callable[[str, Progress], None]:
    def tell(doing: str, progress: Progress) -> None:
        if not done or done[-1] != doing:
            done.append(doing)
        assert 0 <= progress.done <= progress.total

    return tell


def objects(store: ObjectStore) -> dict[str, bytes]:
    return {key: store.get(key) for key in store.keys("")}


def tables_of(store: ObjectStore) -> list[tuple[str, pa.Table]]:
    """Return every finished probe's records, by key."""
    keys = [key for key in store.keys("") if key.endswith(".parquet")]
    return [(key, pq.read_table(io.BytesIO(store.get(key)))) for key in keys]


@pytest.mark.slow
def test_stopped_and_run_again_it_foretells_the_same_and_repeats_no_finished_probe(tiny: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tiny, assistants=[3])
    whole, cut = open_store(str(tmp_path / "whole")), open_store(str(tmp_path / "cut"))
    prediction = preflight(recipe, store=whole, work=tmp_path / "work-whole", on_progress=watch([]))

    with pytest.raises(Stop):
        preflight(recipe, store=cut, work=tmp_path / "work", on_progress=stop_at(4))
    finished = objects(cut)
    assert finished
    assert latest_key(recipe.name) not in finished
    done: list[str] = []
    assert preflight(recipe, store=cut, work=tmp_path / "work", on_progress=watch(done)) == prediction
    assert sum(doing.endswith("learns, kd") for doing in done) == 6 - len(finished) // 2
    assert objects(cut) == objects(whole)

    again: list[str] = []
    assert preflight(recipe, store=cut, work=tmp_path / "work", on_progress=watch(again)) == prediction
    assert again == []


@pytest.fixture(scope="module")
def probed(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Preflight, ObjectStore, Path]:
    """A prediction with its store and work folder."""
    recipe, folder = recipe_of(tiny), tmp_path_factory.mktemp("probed")
    store = open_store(str(folder / "store"))
    return recipe, preflight(recipe, store=store, work=folder / "work"), store, folder / "work"


def test_the_latest_prediction_is_found_and_whole(probed: tuple[Recipe, Preflight, ObjectStore, Path]) -> None:
    recipe, prediction, store, _ = probed
    pointer = PreflightPointer.model_validate_json(store.get(latest_key(recipe.name)))
    document = store.get(preflight_key(recipe.name, pointer.key))
    assert sha256_of(document) == pointer.sha256
    assert document == pretty_json(prediction)
    assert prediction.subject == subject_of(recipe)


def test_no_test_item_is_read(probed: tuple[Recipe, Preflight, ObjectStore, Path]) -> None:
    recipe, prediction, store, work = probed
    home = work / "preflight" / recipe.name
    validation = set(load_frozen(home / "validation.parquet")["id"])
    assert sorted(path.name for path in home.glob("*.parquet")) == ["train.parquet", "validation.parquet"]
    for _, table in tables_of(store):
        items = set(table["item_id"].to_pylist())
        assert items <= validation
        assert len(items) == prediction.items == 24


def test_another_candidate_costs_its_own_probes_alone(
    probed: tuple[Recipe, Preflight, ObjectStore, Path], tiny: Path
) -> None:
    _, before, store, work = probed
    write_teacher(tiny.parent / "other", layers=3, seed=5)
    source = {"kind": "path", "path": str(tiny.parent / "other")}
    more = recipe_of(tiny, teachers=[{"name": "other", "source": source, "licence": "CC0-1.0"}])
    done: list[str] = []
    prediction = preflight(more, store=store, work=work, on_progress=watch(done))
    assert {doing.partition(",")[0] for doing in done} == {"other"}
    assert prediction.own == before.own
    assert prediction.choice is not None
    assert list(prediction.choice.advantages) == ["other"]


@pytest.mark.slow
def test_a_damaged_probe_is_done_again(tiny: Path, tmp_path: Path) -> None:
    recipe, store = recipe_of(tiny), open_store(str(tmp_path / "store"))
    before = preflight(recipe, store=store, work=tmp_path / "work")
    damaged, _ = tables_of(store)[0]
    store.put(damaged, store.get(damaged)[:-1] + b"!")
    for key in store.keys(f"preflight/{recipe.name}/"):
        if "/probes/" not in key:
            store.delete(key)
    done: list[str] = []
    assert preflight(recipe, store=store, work=tmp_path / "work", on_progress=watch(done)) == before
    assert sum(doing.endswith("learns, kd") for doing in done) == 1


@pytest.mark.slow
@pytest.mark.parametrize("task", ["causal-lm", "masked-lm"])
def test_a_language_model_of_random_weights_is_told_from_a_teacher(tmp_path: Path, task: str) -> None:
    masked = task == "masked-lm"
    make = tiny_masked if masked else tiny_causal
    save(make(layers=3, seed=1), tiny_tokenizer(masked=masked), tmp_path / "teacher")
    rows = texts(200)
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows["text"]))
    table = {"source": {"kind": "path", "path": "texts.jsonl"}, "format": "jsonl", "duplicates": "drop"}
    recipe = parse_recipe(
        {
            "name": "words",
            "description": "A language model in miniature.",
            "task": task,
            "data": {
                "domain": "words",
                "train": {**table, "licence": "CC0-1.0", "origin": "generated"},
                "checks": {"min_rows": 10},
            },
            "teacher": {"source": {"kind": "path", "path": "teacher"}, "licence": "CC0-1.0"},
            "student": {"layers": 1},
            "distillation": {"alpha": 0.5, "temperature": 1.0},
            "training": {"epochs": 2, "batch_size": 8, "learning_rate": 5e-3, "max_tokens": 24},
            "preflight": {"rows": 100, "items": 30},
            "gate": {"policy": "policy.yaml"},
            "promotion": {"model": "words"},
        },
        base=tmp_path,
    )
    store = open_store(str(tmp_path / "store"))
    own = preflight(recipe, store=store, work=tmp_path / "work").own
    records = [table for _, table in tables_of(store)]
    assert len(records) == 3
    assert all(table["targets"].equals(records[0]["targets"]) for table in records)
    assert own.outlook == "unlikely"
    assert "guessing by frequency" in (own.problem or "")
    # The words are equally frequent; random weights are worse than that, and worse than what has learned a little.
    assert own.scores["guess"].value == pytest.approx(math.log(len(WORDS)), abs=0.15)
    assert own.scores["guess"].value < own.scores["teacher"].value
    assert own.headroom.value < 0


@pytest.mark.slow
def test_a_teacher_that_knows_better_than_the_labels_is_found_to_help(tmp_path: Path) -> None:
    """The teacher learned from right labels, the students' labels are wrong in four of ten."""
    path = write_workflow(tmp_path, rows=500)
    plain = load_recipe(path)
    rows = Dataset.from_pandas(load_tables(plain.data, fetch_source)["train"])
    prepare_teacher(plain, rows, tmp_path / "taught", tmp_path / "training")
    rng = random.Random(3)
    head, *lines = (tmp_path / "films.csv").read_text().splitlines()
    swapped = {"negative": "positive", "positive": "negative"}
    noisy = [(line.rpartition(","), rng.random() < 0.4) for line in lines]
    wrong = [f"{start},{swapped[label] if flip else label}" for (start, _, label), flip in noisy]
    (tmp_path / "films.csv").write_text("\n".join([head, *wrong]) + "\n")
    write_csv(tmp_path / "right.csv", rows=400, seed=9, prefix="v")
    train = plain.data.train.model_dump()
    held_out = train | {"source": {"kind": "path", "path": str(tmp_path / "right.csv")}}
    recipe = load_recipe(
        path,
        {
            "teacher": {"source": {"kind": "path", "path": str(tmp_path / "taught")}, "licence": "CC0-1.0"},
            "data.train": train | {"duplicates": "drop"},
            "data.validation": held_out,
            "distillation.alpha": 0.1,
            "training.epochs": 8,
            "preflight": {"rows": 200, "items": 400, "repeats": 5},
        },
    )
    own = preflight(recipe, store=open_store(str(tmp_path / "store")), work=tmp_path / "work").own
    assert own.outlook == "likely"
    assert own.skill.low > 0.3
    assert own.headroom.low > 0


def test_its_code_is_named_whole() -> None:
    reached = grimp.build_graph("stillhouse").find_upstream_modules("stillhouse.training.preflight.run")
    plumbing = ("recipe", "contract", "store")
    rooms = {module.split(".")[1] for module in reached if "." in module}
    assert rooms - {*CODE, *plumbing} == set()


def test_it_reads_as_one_table_and_one_sentence(probed: tuple[Recipe, Preflight, ObjectStore, Path]) -> None:
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render(probed[1]))
    text = console.export_text()
    assert "kd over sft" in text
    assert probed[1].own.outlook in text
    assert "validation" in text
