"""Tasks of the lm-evaluation-harness: figures are those of an own computation, and unfit tasks are refused."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from tiny_language import QUIZ, texts, tiny_causal, tiny_tokenizer, write_quiz

from stillhouse.contract import ConfigurationError, DataRejected
from stillhouse.evaluation import (
    Benchmark,
    SuiteInfo,
    Timed,
    ask,
    build_benchmarks,
    read_records,
    summarise,
    write_records,
)
from stillhouse.evaluation.harness import ask_benchmark
from stillhouse.evaluation.language import score_language
from stillhouse.models import documents_of, likelihoods
from stillhouse.recipe import EvaluationConfig, HarnessConfig, PathSource, Recipe, load_recipe

WRITING = """
include: quiz.yaml
task: writing
output_type: generate_until
doc_to_choice: null
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: [" good"], max_gen_toks: 5}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
LAST_WORD = """
include: quiz.yaml
task: last-word
output_type: loglikelihood
doc_to_choice: null
doc_to_target: "{{' ' + choices[answer]}}"
metric_list: [{metric: acc}]
"""
ITEMS = 40


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_quiz(tmp_path / "tasks", items=ITEMS)


def build(folder: Path | None, task: str = "Tiny_Quiz", **config: Any) -> Benchmark:
    source = PathSource(path=str(folder)) if folder else None
    workspace = Path(config.pop("workspace", folder.parent / "work" if folder else "unused"))
    (benchmark,) = build_benchmarks(HarnessConfig(tasks=(task,), source=source, **config), workspace)
    return benchmark


def add(folder: Path, text: str, name: str = "more.yaml") -> Path:
    (folder / name).write_text(text)
    return folder


def timed(seed: int = 0, **shape: Any) -> Timed:
    return Timed(model=tiny_causal(seed=seed, **shape), tokenizer=tiny_tokenizer(), folder=Path("unused"))


def answers(benchmark: Benchmark, model: Timed, name: str = "kd", *, batch_size: int = 7) -> dict[str, list[Any]]:
    table = ask_benchmark(name, model, benchmark, batch_size=batch_size, seed=7, on_progress=lambda progress: None)
    columns: dict[str, list[Any]] = table.to_pydict()
    return columns


def rows_of(folder: Path, name: str = "quiz") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def likelihood(model: Timed, prompt: str, answer: str, positions: int = 64) -> tuple[float, bool]:
    """Return the answer's log-likelihood, and whether it is what the model would say: one text at a time."""
    labels_T = torch.tensor(model.tokenizer(answer)["input_ids"])
    whole = torch.tensor([model.tokenizer(f"{prompt} {answer}")["input_ids"][-positions - 1 :]])
    with torch.no_grad():
        logits_TV = model.model(input_ids=whole).logits[0, -len(labels_T) - 1 : -1]
    found = logits_TV.log_softmax(-1).gather(1, labels_T[:, None]).sum()
    return float(found), bool((logits_TV.argmax(-1) == labels_T).all())


def test_right_and_wrong_are_those_of_an_own_computation(folder: Path) -> None:
    model = timed()
    found = answers(build(folder), model)
    hits, losses = [], []
    for row in rows_of(folder):
        likely_C = np.asarray([likelihood(model, row["question"], choice)[0] for choice in row["choices"]])
        hits.append(int(likely_C.argmax() == row["answer"]))
        losses.append(-likely_C[row["answer"]] + np.log(np.exp(likely_C).sum()))
    assert 0 < sum(hits) < ITEMS
    assert found["hits"] == hits
    assert found["loss"] == pytest.approx(losses, abs=1e-4)
    assert found["targets"] == [1] * ITEMS
    assert found["item_id"] == found["group"] == [str(number) for number in range(ITEMS)]
    assert set(found["suite"]) == {"tiny-quiz"}
    assert not any(found["truncated"])


def test_the_harness_by_itself_finds_the_same(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model = timed(1)
    found = answers(build(folder, num_fewshot=2, seed=3), model)
    (folder / "quiz.yaml").write_text(
        QUIZ.replace("lessons", f"{folder}/lessons").replace("quiz.j", f"{folder}/quiz.j")
    )
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "theirs")
    theirs = simple_evaluate(
        model=HFLM(pretrained=model.model, tokenizer=model.tokenizer, batch_size=5),
        tasks=["Tiny_Quiz"],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        num_fewshot=2,
        fewshot_random_seed=3,
        bootstrap_iters=0,
    )
    assert [sample["acc"] for sample in theirs["samples"]["Tiny_Quiz"]] == found["hits"]


def test_a_continuation_is_right_where_the_model_would_give_it(folder: Path) -> None:
    model = timed(2)
    rows = rows_of(folder)
    # Answers that the model itself would give, in half of the rows.
    for row in rows[::2]:
        given = torch.tensor([model.tokenizer(row["question"])["input_ids"]])
        token = int(model.model(input_ids=given).logits[0, -1].argmax())
        row |= {"choices": [model.tokenizer.decode([token])], "answer": 0}
    (folder / "quiz.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = answers(build(add(folder, LAST_WORD), "last-word"), model)
    expected = [likelihood(model, row["question"], row["choices"][row["answer"]]) for row in rows]
    assert found["hits"] == [int(sure) for _, sure in expected]
    assert 0 < sum(found["hits"]) < ITEMS
    assert found["loss"] == pytest.approx([-likely for likely, _ in expected], abs=1e-4)


def test_a_choice_may_be_what_comes_before_the_answer(folder: Path) -> None:
    swapped = QUIZ.replace('"{{question}}"', "answer").replace("target: answer", "target: question")
    model = timed(4)
    found = answers(build(add(folder, swapped, "quiz.yaml")), model)
    likely_NC = np.asarray(
        [[likelihood(model, choice, row["question"])[0] for choice in row["choices"]] for row in rows_of(folder)]
    )
    rights_N = np.asarray([row["answer"] for row in rows_of(folder)])
    assert found["hits"] == (likely_NC.argmax(axis=1) == rights_N).astype(int).tolist()
    losses_N = np.log(np.exp(likely_NC).sum(axis=1)) - likely_NC[range(ITEMS), rights_N]
    assert found["loss"] == pytest.approx(losses_N.tolist(), abs=1e-4)


def test_several_choices_may_be_right(folder: Path) -> None:
    for name in ("lessons", "quiz"):
        rows = [row | {"answer": [row["answer"], (row["answer"] + 1) % 3]} for row in rows_of(folder, name)]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    model = timed(5)
    found = answers(build(folder), model)
    likely_NC = np.asarray(
        [[likelihood(model, row["question"], choice)[0] for choice in row["choices"]] for row in rows_of(folder)]
    )
    wrongs_N = np.asarray([(row["answer"][0] + 2) % 3 for row in rows_of(folder)])
    assert found["hits"] == (likely_NC.argmax(axis=1) != wrongs_N).astype(int).tolist()
    shares_NC = np.exp(likely_NC) / np.exp(likely_NC).sum(axis=1, keepdims=True)
    assert found["loss"] == pytest.approx((-np.log1p(-shares_NC[range(ITEMS), wrongs_N])).tolist(), abs=1e-3)


def test_written_answers_are_right_or_wrong_and_have_no_loss(folder: Path) -> None:
    model = timed(3)
    rows = rows_of(folder)
    written = []
    for row in rows:
        given = model.tokenizer(row["question"], return_tensors="pt")["input_ids"]
        tokens = model.model.generate(given, max_new_tokens=5, do_sample=False, pad_token_id=0)[0, given.shape[1] :]
        written.append(model.tokenizer.decode(tokens, skip_special_tokens=True).partition(" good")[0])
    for row, answer in zip(rows[::2], written[::2], strict=True):
        row |= {"choices": [answer], "answer": 0}
    (folder / "quiz.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = answers(build(add(folder, WRITING), "writing"), model)
    rights = [row["choices"][row["answer"]] for row in rows]
    assert found["hits"] == [int(answer == right) for answer, right in zip(written, rights, strict=True)]
    assert sum(found["hits"]) >= ITEMS // 2
    assert set(found["loss"]) == {None}


def test_batches_make_no_difference(folder: Path) -> None:
    benchmark = build(folder)
    one, many = (answers(benchmark, timed(), batch_size=size) for size in (1, 32))
    assert one["hits"] == many["hits"]
    assert one["loss"] == pytest.approx(many["loss"], abs=1e-5)


def test_every_model_is_asked_the_same_worked_examples(folder: Path) -> None:
    benchmark = build(folder, num_fewshot=2)
    first = answers(benchmark, timed())
    answers(benchmark, timed(1))
    assert answers(benchmark, timed()) == first
    prompts = [request.args[0] for request in benchmark.task.instances]
    assert all(any(row["question"] in prompt for row in rows_of(folder, "lessons")) for prompt in prompts)


def test_the_items_have_a_digest_of_what_they_are_and_not_of_where(folder: Path, tmp_path: Path) -> None:
    before = build(folder)
    moved = folder.rename(tmp_path / "elsewhere")
    assert build(moved).items_sha256 == before.items_sha256
    assert build(moved, num_fewshot=1).items_sha256 != before.items_sha256
    assert build(moved, limit=5).items_sha256 != before.items_sha256
    rows = rows_of(moved)
    rows[0]["answer"] = (rows[0]["answer"] + 1) % 3
    (moved / "quiz.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert build(moved).items_sha256 != before.items_sha256


def test_items_that_change_are_refused(folder: Path) -> None:
    benchmark = build(folder)
    benchmark.task.config.doc_to_text = "{{question}} good"
    with pytest.raises(DataRejected, match="other items each time"):
        answers(benchmark, timed())


def test_a_limit_keeps_the_first_items(folder: Path) -> None:
    benchmark = build(folder, limit=6)
    assert len(benchmark) == 6
    assert answers(benchmark, timed())["hits"] == answers(build(folder), timed())["hits"][:6]


def test_nothing_is_cached_or_said_elsewhere(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    home = datasets.config.HF_DATASETS_CACHE
    before = sorted(Path(home).rglob("*"))
    answers(build(folder, workspace=tmp_path / "w"), timed())
    assert home == datasets.config.HF_DATASETS_CACHE
    assert sorted(Path(home).rglob("*")) == before
    assert list((tmp_path / "w").rglob("*.arrow"))
    assert capfd.readouterr() == ("", "")


def test_what_does_not_fit_loses_its_beginning_and_is_counted(folder: Path) -> None:
    benchmark, model = build(folder, num_fewshot=2), timed(max_position_embeddings=16)
    found = answers(benchmark, model)
    asked = [[r.args for r in benchmark.task.instances if r.doc_id == number] for number in range(ITEMS)]
    tokens = [max(len(model.tokenizer(prompt + choice)["input_ids"]) for prompt, choice in item) for item in asked]
    assert found["truncated"] == [longest > 17 for longest in tokens]
    assert 0 < sum(found["truncated"]) < ITEMS
    likely_NC = np.asarray([[likelihood(model, *pair, positions=16)[0] for pair in item] for item in asked])
    rights_N = [row["answer"] for row in rows_of(folder)]
    losses_N = np.log(np.exp(likely_NC).sum(axis=1)) - likely_NC[range(ITEMS), rights_N]
    assert found["loss"] == pytest.approx(losses_N.tolist(), abs=1e-4)


def test_a_task_without_room_is_refused(folder: Path) -> None:
    benchmark = build(add(folder, WRITING.replace("toks: 5", "toks: 64")), "writing")
    with pytest.raises(ConfigurationError, match="an answer of 64 tokens exceeds the model's 64 positions"):
        answers(benchmark, timed())
    with pytest.raises(ConfigurationError, match="an answer of 3 tokens exceeds the model's 2 positions"):
        answers(build(folder), timed(max_position_embeddings=2))


def test_a_broken_model_is_refused_by_name(folder: Path, language_recipe: Recipe) -> None:
    model = timed()
    model.model.lm_head.weight.data[7] = torch.nan
    with pytest.raises(DataRejected, match="model kd on suite tiny-quiz: the model gave NaN"):
        ask("kd", model, "tiny-quiz", build(folder), recipe=language_recipe, on_progress=lambda progress: None)
    writing = build(add(folder, WRITING), "writing")
    with pytest.raises(DataRejected, match="model kd on suite writing: the model gave NaN"):
        ask("kd", model, "writing", writing, recipe=language_recipe, on_progress=lambda progress: None)


@pytest.fixture
def language_recipe(tmp_path: Path) -> Recipe:
    from tiny_language import write_language_workflow

    (tmp_path / "flow").mkdir()
    return load_recipe(write_language_workflow(tmp_path / "flow"))


@pytest.mark.parametrize(
    "right", [7, -1, "nothing of these"], ids=["a number too many", "a negative one", "another text"]
)
def test_an_item_without_a_right_choice_is_refused(folder: Path, right: int | str) -> None:
    for name in ("lessons", "quiz"):
        rows = rows_of(folder, name)
        if isinstance(right, str):
            rows = [row | {"answer": row["choices"][row["answer"]]} for row in rows]
        rows[3]["answer"] = right
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    benchmark = build(folder)
    with pytest.raises(DataRejected, match="1 items have no right answer among their choices"):
        answers(benchmark, timed())


def test_a_figure_between_right_and_wrong_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark = build(folder)
    monkeypatch.setattr(benchmark.task, "process_results", lambda doc, results: {"acc": 0.5})
    with pytest.raises(DataRejected, match=f"acc of {ITEMS} items is neither 0 nor 1"):
        answers(benchmark, timed())


def changed(old: str, new: str) -> Callable[[Path], Path]:
    return lambda folder: add(folder, QUIZ.replace(old, new), "quiz.yaml")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (changed("answer\n", "answer\nprocess_docs: !function evil.run\n"), "asks for Python"),
        (changed("Tiny_Quiz\n", "Tiny_Quiz\nclass: !function evil.Task\n"), "asks for Python"),
        (changed("answer\n", "answer\nprocess_docs: !!python/name:os.abort\n"), "asks for Python"),
        (changed("answer\n", "answer\nuse_prompt: 'promptsource:*'\n"), "use_prompt is not supported"),
        (changed("answer\n", "answer\ninclude: ../evil.yaml\n"), "is no file in the recipe's folder"),
        (changed("answer\n", "answer\ninclude: quiz.yaml\n"), "it includes itself"),
        (changed("quiz.jsonl", "../quiz.jsonl"), "is no file in the recipe's folder"),
        (changed("quiz.jsonl", "/etc/hostname"), "is no file in the recipe's folder"),
        (changed("quiz.jsonl", "https://example.org/quiz.jsonl"), "is no file in the recipe's folder"),
        (changed("quiz.jsonl}}", "quiz.jsonl}, data_dir: /etc}"), "must have data_files, and nothing else"),
        (changed("dataset_path: json", "dataset_path: allenai/ai2_arc"), "dataset_path must be one of"),
        (changed("answer\n", "answer\nmetric_list: [{metric: ./evil.py}]\n"), "not the harness's own"),
        (changed("answer\n", "answer\nmetric_list: [{metric: acc, hf_evaluate: true}]\n"), "not the harness's own"),
        (changed("answer\n", "answer\nmetric_list: [{metric: brier_score}]\n"), "does not say right or wrong"),
        (changed("answer\n", "answer\nunsafe_code: true\n"), "runs code that a model writes"),
        (changed("answer\n", "answer\ndoc_to_image: question\n"), "shows images"),
        (changed("{{question}}", "{{query}}"), "'query' is undefined"),
        (changed("{{question}}", "{{question.__class__.__mro__}}"), "can't be built from its data"),
        (changed("task: Tiny_Quiz", "- Tiny_Quiz: [1"), "can't be read as YAML"),
        (changed(QUIZ, "[]"), "holds no settings"),
        (lambda folder: add(folder, QUIZ), "has a file already"),
        (lambda folder: folder / "nowhere", "no such file or folder"),
    ],
)
def test_unfit_files_are_refused(
    folder: Path, change: Callable[[Path], Path], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = "raise SystemExit('foreign code has run')\n"
    for place in (folder, folder.parent):
        (place / "evil.py").write_text(evil)
    (folder.parent / "evil.yaml").write_text(QUIZ)
    (folder.parent / "quiz.jsonl").write_text((folder / "quiz.jsonl").read_text())
    monkeypatch.chdir(folder)
    with pytest.raises(ConfigurationError, match=reason) as caught:
        build(change(folder))
    assert "\n" not in str(caught.value)


def test_files_below_share_what_lies_above(folder: Path) -> None:
    (folder / "below").mkdir()
    below = (
        "include: ../quiz.yaml\ntask: below\ndataset_kwargs: {data_files: {train: ../lessons.jsonl, test: q.jsonl}}\n"
    )
    add(folder, below, "below/task.yaml")
    add(folder, (folder / "quiz.jsonl").read_text(), "below/q.jsonl")
    assert build(folder, "below").items_sha256 == build(folder).items_sha256


def test_answers_drawn_at_random_are_refused(folder: Path) -> None:
    drawn = WRITING.replace("max_gen_toks: 5", "max_gen_toks: 5, do_sample: true, temperature: 0.7")
    with pytest.raises(ConfigurationError, match="task writing draws answers at random"):
        build(add(folder, drawn), "writing")


@pytest.mark.slow
def test_tasks_that_ship_with_the_harness_are_found_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="data set of task arc_easy lies on a model hub, and HF_HUB_OFFLINE"):
        build(None, "arc_easy", workspace=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "reason"),
    [("mmlu", "a group; name its tasks"), ("no_such_task", "no task; see"), ("quiz.yaml", "no task")],
)
def test_other_names_are_refused(folder: Path, task: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)  # where quiz.yaml is a path
    with pytest.raises(ConfigurationError, match=reason):
        build(folder, task)


def test_a_missing_harness_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'stillhouse\[harness\]'"):
        build(folder)


def test_a_summary_compares_right_and_wrong_answers(folder: Path, tmp_path: Path) -> None:
    models = {name: timed(seed) for seed, name in enumerate(("teacher", "kd", "start"))}
    tokenizer, rows = tiny_tokenizer(), texts()
    documents = documents_of("causal-lm", tokenizer, rows, max_tokens=32, mask_share=0.1, seed=0)
    benchmarks = [build(folder), build(add(folder, WRITING), "writing")]
    tables: list[pa.Table] = []
    for name, model in models.items():
        scores = likelihoods(model.model, tokenizer, documents, batch_size=8, max_tokens=32)
        tables.append(score_language(name, "stories", rows, documents, scores, seed=7))
        tables += [
            ask_benchmark(name, model, benchmark, batch_size=8, seed=7, on_progress=lambda progress: None)
            for benchmark in benchmarks
        ]
    write_records(tables, tmp_path / "records")
    records = read_records(tmp_path / "records")
    home = SuiteInfo(name="stories", kind="in-domain", items_sha256="1" * 64)
    suites = [home, *(benchmark.info for benchmark in benchmarks)]
    summary = summarise(records, config=EvaluationConfig(resamples=200), suites=suites)
    quiz = summary.suite("tiny-quiz")
    assert quiz is not None
    assert (quiz.metric, quiz.kind, quiz.num_items) == ("accuracy", "benchmark", ITEMS)
    assert quiz.items_sha256 == benchmarks[0].items_sha256
    hits = np.asarray(answers(benchmarks[0], models["kd"])["hits"])
    theirs = np.asarray(answers(benchmarks[0], models["teacher"])["hits"])
    score, comparison = quiz.models["kd"].metrics, summary.comparison("tiny-quiz", "teacher")
    assert set(score) == {"accuracy", "nll"}
    assert score["accuracy"].value == hits.mean()
    assert score["accuracy"].low < hits.mean() < score["accuracy"].high
    assert comparison is not None
    assert comparison.difference.value == pytest.approx(hits.mean() - theirs.mean())
    assert comparison.flips_lost is not None
    assert comparison.flips_lost.value == ((hits == 0) & (theirs == 1)).mean()
    writing = summary.suite("writing")
    assert writing is not None
    assert set(writing.models["kd"].metrics) == {"accuracy"}
    assert not summary.retention
    assert summary.drops["kd"] == {}


def test_losses_that_are_no_numbers_are_refused(folder: Path) -> None:
    table = ask_benchmark("teacher", timed(), build(folder), batch_size=8, seed=7, on_progress=lambda progress: None)
    place = table.schema.get_field_index("loss")
    broken = table.set_column(place, "loss", pa.array([float("nan")] * ITEMS)).cast(table.schema)
    records = pa.concat_tables([table, broken.set_column(0, "model", pa.repeat("kd", ITEMS))])
    from stillhouse.evaluation.language import read_benchmark

    with pytest.raises(DataRejected, match=f"model kd on suite tiny-quiz: losses of {ITEMS} of {ITEMS} items"):
        read_benchmark(records, "tiny-quiz", ("teacher", "kd"))
