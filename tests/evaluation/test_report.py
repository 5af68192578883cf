"""The page, the card and the terminal tell the same story, on their own, the same way every time."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from imaginary import ACCURACIES, SUITES, TIMINGS, make_history, make_records
from rich.console import Console

from stillhouse.contract import Decision, EvaluationSummary, RuleOutcome, Timings, pretty_json
from stillhouse.evaluation import (
    ReportInputs,
    TableFacts,
    loss_curves,
    quality_against_latency,
    render_card,
    render_report,
    render_text,
    summarise,
    to_png,
)
from stillhouse.recipe import EvaluationConfig, load_recipe

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Checks that tags nest, and collects text, identifiers and addresses."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href"):
                self.addresses.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.handle_starttag(tag, attrs)
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def inputs(workflow: Path) -> ReportInputs:
    records = make_records(ACCURACIES | {"champion": (0.84, 0.72)})
    summary = summarise(records, config=EvaluationConfig(resamples=200), suites=SUITES)
    rules = (
        RuleOutcome(rule="kept", requirement="keeps at least 0.9", outcome="pass", reason="it does",
                    value=summary.retention["movies"], bound=0.9),
        RuleOutcome(rule="enough", requirement="movies has at least 1,000 items", outcome="inconclusive",
                    reason="600 items", bound=1000),
        RuleOutcome(rule="floor", requirement="accuracy is at least 0.99", outcome="fail", reason="0.855 is below",
                    value=summary.suites[0].models["kd"].accuracy, bound=0.99),
    )  # fmt: skip
    decision = Decision(
        verdict="reject",
        candidate="kd",
        model_sha256="a" * 64,
        champion_sha256="c" * 64,
        policy="tests",
        policy_sha256="b" * 64,
        evidence_sha256="e" * 64,
        rules=rules,
        notes=("distillation brought nothing here: kd − sft = +0.005 [−0.010, +0.020]",),
    )
    return ReportInputs(
        recipe=load_recipe(workflow),
        decision=decision,
        summary=summary,
        timings=TIMINGS,
        records=records,
        histories={"kd": make_history("ce", "kd", "hidden"), "sft": make_history("ce")},
        tables=[TableFacts(name="train", num_rows=600, sha256="d" * 64, licence="CC0-1.0", origin="a <b>test</b>")],
        checks=[
            SimpleNamespace(table="train", expectation="labels are balanced", severity="warning", success=False),
            SimpleNamespace(table="train", expectation="no nulls", severity="critical", success=True),
        ],
        data_docs="data-docs/index.html",
        digests={"Records": "f" * 64},
        software="Stillhouse 0.1.0",
    )


def test_the_page_is_whole_and_loads_nothing_from_elsewhere(inputs: ReportInputs) -> None:
    html = render_report(inputs)
    page = Page(html)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert [address for address in page.addresses if not address.startswith("#")] == ["data-docs/index.html"]
    assert "@import" not in html
    assert re.findall(r"url\((?!#)", html) == []


def test_the_verdict_comes_first_then_what_fails(inputs: ReportInputs) -> None:
    text = Page(render_report(inputs)).text
    parts = ("Reject", "misses 1 of 3", "brought nothing", "Requirements", "0.855 is below", "600 items", "it does")
    places = [text.index(part) for part in (*parts, "Models", "Curves", "Data", "Lineage")]
    assert places == sorted(places)


def test_the_page_holds_figures_with_intervals_digests_and_origins(inputs: ReportInputs) -> None:
    text = Page(render_report(inputs)).text
    accuracy = inputs.summary.suites[1].models["champion"].accuracy
    for part in (
        f"[{accuracy.low:.3f}, {accuracy.high:.3f}]",
        "1 of 2 checks passed",
        "labels are balanced",
        "a <b>test</b>",
        inputs.decision.digest,
        "f" * 64,
        "Stillhouse 0.1.0",
        "champion in service",
    ):
        assert part in text


def test_equal_inputs_give_equal_pages_even_after_a_round_trip_through_json(inputs: ReportInputs) -> None:
    stored = replace(
        inputs,
        summary=EvaluationSummary.model_validate_json(pretty_json(inputs.summary)),
        timings=Timings.model_validate_json(pretty_json(inputs.timings)),
        decision=Decision.model_validate_json(pretty_json(inputs.decision)),
    )
    assert render_report(stored) == render_report(inputs)


def test_where_the_recipe_lies_is_not_on_the_page(inputs: ReportInputs, workflow: Path) -> None:
    html = render_report(inputs)
    assert str(workflow.parent) not in html
    assert "path: films.csv" in html
    assert "policy: policy.yaml" in html


def test_the_page_does_without_what_a_run_may_lack(inputs: ReportInputs) -> None:
    bare = replace(inputs, histories={}, tables=(), checks=(), data_docs=None, digests={}, software="")
    assert Page(render_report(bare)).open == []


@pytest.mark.parametrize(
    ("verdict", "sentence"),
    [("promote", "meets all 3 requirements"), ("inconclusive", "can't settle 1 of 3 requirements")],
)
def test_each_verdict_has_its_sentence(inputs: ReportInputs, verdict: Any, sentence: str) -> None:
    decision = inputs.decision.model_copy(update={"verdict": verdict})
    assert sentence in Page(render_report(replace(inputs, decision=decision))).text


def test_the_card_shows_every_rule_and_the_digest_that_an_answer_is_bound_to(inputs: ReportInputs) -> None:
    card = render_card(inputs.decision, inputs.summary)
    assert card.startswith("## ❌ Reject")
    assert inputs.decision.digest in card
    rows = [line for line in card.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + len(inputs.decision.rules)
    assert len({row.count("|") for row in rows}) == 1


def test_the_terminal_shows_quality_with_intervals(inputs: ReportInputs) -> None:
    console = Console(width=160, record=True, file=StringIO())
    console.print(render_text(inputs.summary, inputs.timings, inputs.decision))
    text = console.export_text()
    scores = inputs.summary.suites[0].models["kd"].accuracy
    half = max(scores.high - scores.value, scores.value - scores.low)
    for part in ("REJECT", f"{scores.value:.3f} ±{half:.3f}", "88.0 MB", "4.6 ms", "✗ fail", "brought nothing"):
        assert part in text


def test_plots_have_a_panel_for_each_term_and_equal_bytes(inputs: ReportInputs) -> None:
    figure = loss_curves(inputs.histories)
    assert [len(ax.get_lines()) for ax in figure.axes] == [2, 2, 1, 1]
    first, again = (to_png(quality_against_latency(inputs.summary, TIMINGS)) for _ in range(2))
    assert first == again
    assert first.startswith(b"\x89PNG")
