"""The cards: what a reviewer answers to, and what goes with the model."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from findings import classified, language, make_decision, make_inputs, written

from stillhouse.evaluation import ReportInputs, render_card, render_model_card
from stillhouse.recipe import RationalesConfig
from stillhouse.recipe.sources import HubSource, PathSource

ROOT = Path(__file__).parents[2]


@pytest.fixture
def inputs() -> ReportInputs:
    return make_inputs(classified())


def front_matter(card: str) -> dict[str, Any]:
    opening, header, _ = card.split("---\n", 2)
    assert opening == ""
    return dict(yaml.safe_load(header))


def with_teacher(inputs: ReportInputs, **changes: Any) -> ReportInputs:
    teacher = inputs.recipe.teacher.model_copy(update=changes)
    return replace(inputs, recipe=inputs.recipe.model_copy(update={"teacher": teacher}))


def test_the_decision_card_shows_every_rule_and_the_digest_that_an_answer_is_bound_to() -> None:
    summary = classified()
    decision = make_decision(summary)
    card = render_card(decision, summary)
    assert card.startswith("## ❌ Reject")
    assert decision.digest in card
    rows = [line for line in card.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + len(decision.rules)
    assert len({row.count("|") for row in rows}) == 1
    for part in ("−0.011 [−0.035, 0.013] | 300 | 41 %", "keeps least on negations", "⚠️ **contamination**: 12 training"):
        assert part in card


def test_the_model_card_opens_with_what_the_hub_reads(inputs: ReportInputs) -> None:
    header = front_matter(render_model_card(inputs))
    assert header["license"] == "apache-2.0"
    assert "base_model" not in header
    assert header["pipeline_tag"] == "text-classification"
    assert header["metrics"] == ["accuracy", "f1", "auroc_confidence"]
    (index,) = header["model-index"]
    assert index["name"] == inputs.recipe.promotion.model
    home = index["results"][0]
    assert home["dataset"]["name"] == "movies"
    score = inputs.summary.suites[0].score("kd")
    assert score is not None
    assert home["metrics"][0] == {"type": "accuracy", "name": "accuracy", "value": round(score.value, 4)}


def test_a_licence_that_the_hub_does_not_know_and_a_teacher_that_it_has(inputs: ReportInputs) -> None:
    source = HubSource(repo="owner/teacher", revision="0" * 40)
    header = front_matter(render_model_card(with_teacher(inputs, licence="Own terms 1.0", source=source)))
    assert header["license"] == "other"
    assert header["license_name"] == "own terms 1.0"
    assert header["base_model"] == "owner/teacher"


def test_the_model_card_tells_limits_figures_and_lineage(inputs: ReportInputs) -> None:
    card = render_model_card(inputs)
    decision = inputs.decision
    for part in (
        "It keeps least on negations",
        "On tweets (shifted domain): accuracy 0.082 ±0.026 lower than on movies.",
        "On movies-typos it loses more than its teacher does",
        "Texts that no label fits (recipes)",
        "The label that it misses most is negative",
        "expected calibration error",
        "Distillation brought nothing on tweets",
        "| nyt | shifted domain | 1,500 | accuracy | 0.683 [0.659, 0.706] | 0.712 [0.689, 0.735] | 95.9 ±2.1 % |",
        "17.4 M parameters, 69.6 MB",
        'mlflow.transformers.load_model("models:/quickstart-sentiment@champion")',
        decision.digest,
        decision.model_sha256,
        decision.policy_sha256,
    ):
        assert part in card
    assert "{{" not in card


def test_a_language_models_card_has_no_labels_and_no_shares() -> None:
    summary = language()
    card = render_model_card(make_inputs(summary))
    assert "furthest behind on letters" in card
    assert "perplexity" in front_matter(card)["metrics"]
    assert "expected calibration error" not in card
    assert "lower than" not in card
    assert "On letters (shifted domain): loss 0.414 ±0.026 higher than on dialogues." in card


def test_the_card_of_a_run_with_a_server_as_teacher_compares_with_the_start() -> None:
    summary = written()
    card = render_model_card(make_inputs(summary))
    assert "The teacher is a\nserver and was not measured" in card
    assert "large-1 at teacher.example" in card
    assert "| this model | before it learned |" in card
    assert "kept, or difference" not in card
    for part in (
        "large-1 at teacher.example wrote 302,511 tokens in 3,000 answers, for 1.84",
        "The filter that took away most is verifier: 1,284 of 2,926.",
        "The loss was cross-entropy with the teacher's words.",
        "- large-1 at teacher.example: Own terms 1.0, needs-sign-off for internal use, signed off by A. Counsel",
        "It learned from texts that large-1 at teacher.example wrote",
    ):
        assert part in card
    assert render_card(make_decision(summary), summary).startswith("## ❌ Reject")


def test_the_card_says_what_was_minimised(inputs: ReportInputs) -> None:
    told = render_model_card(inputs)
    alpha = inputs.recipe.distillation.alpha
    assert f"The loss was {alpha} × cross-entropy with the labels + {1 - alpha:g} × T² × forward-kl" in told
    weighted = RationalesConfig(label_weight=0.3)
    written_recipe = make_inputs(written()).recipe.model_copy(update={"synthesis": weighted})
    told = render_model_card(replace(make_inputs(written()), recipe=written_recipe))
    assert "0.3 × cross-entropy with the labels + 0.7 × cross-entropy with the rationales" in told


def test_the_model_card_says_where_speeds_were_measured(inputs: ReportInputs) -> None:
    elsewhere = replace(inputs, timings=inputs.timings.model_copy(update={"device": "cuda"}))
    assert "at the 95th percentile, on 2 threads |" in render_model_card(inputs)
    assert "at the 95th percentile, on an accelerator (cuda) |" in render_model_card(elsewhere)


def test_equal_evidence_gives_equal_cards_wherever_the_files_lie(inputs: ReportInputs) -> None:
    cards = {
        render_model_card(with_teacher(inputs, source=PathSource(path=f"/{place}/model")))
        for place in ("here", "there")
    }
    assert len(cards) == 1
    assert "/here" not in cards.pop()


def test_an_origin_cannot_break_the_cards_table(inputs: ReportInputs) -> None:
    (row,) = [line for line in render_model_card(inputs).splitlines() if line.startswith("| train")]
    assert row.replace("\\|", "").count("|") == 6


def test_the_template_that_users_edit_is_the_one_that_is_used() -> None:
    package = ROOT / "tasks" / "stillhouse" / "evaluation" / "templates" / "model-card.md.j2"
    assert (ROOT / "mlflow" / "model-card.md.j2").samefile(package)
