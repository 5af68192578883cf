"""The page tells the whole story, on its own, the same way every time, for every task."""

import re
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from typing import Any

import pytest
from findings import classified, language, make_inputs, make_synthesis, written

from stillhouse.contract import Decision, EvaluationSummary, Timings, pretty_json
from stillhouse.evaluation import render_report
from stillhouse.evaluation.phrases import headline
from stillhouse.recipe.sources import PathSource

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
        self.text += " "  # entries of a table touch one another

    def handle_data(self, data: str) -> None:
        self.text += data


MADE = {"classified": make_inputs(classified()), "language": make_inputs(language()), "written": make_inputs(written())}


@cache
def rendered(name: str) -> str:
    return render_report(MADE[name])


def words(html: str) -> str:
    return " ".join(Page(html).text.split())


@pytest.fixture(params=list(MADE))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_page_is_whole_and_loads_nothing_from_elsewhere(name: str) -> None:
    html = rendered(name)
    page = Page(html)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    within = {address.removeprefix("#") for address in page.addresses if address.startswith("#")}
    assert within <= set(page.ids)
    assert [address for address in page.addresses if not address.startswith("#")] == ["data-docs/index.html"]
    assert "@import" not in html
    assert "<script" not in html
    assert re.findall(r"url\((?!#)", html) == []


def test_the_verdict_comes_first_then_what_fails(name: str) -> None:
    text = words(rendered(name))
    parts = ("Reject", "misses 1 of 4", "brought nothing", "below 0.99", "300 items are too few", "0 of 7,422")
    sections = ("Models All on", "Suites All models", "Out of distribution How", "Quality against cost Up")
    places = [text.index(part) for part in (*parts, *sections, "checks passed", "Lineage Teacher", "Reproduce")]
    assert places == sorted(places)


def test_a_rule_shows_value_interval_bound_items_and_power() -> None:
    rule = "no-regression −0.011 [−0.035, 0.013] −0.03 300 41 % ? inconclusive"
    assert rule in words(rendered("classified"))


def test_the_suite_that_keeps_least_is_named_and_marked() -> None:
    text = words(rendered("classified"))
    worst = min(MADE["classified"].summary.retention.items(), key=lambda item: item[1].value)
    assert f"It keeps least on {worst[0]}: {100 * worst[1].value:.1f} %" in text
    assert f"{100 * worst[1].value:.1f} ±2.1 % worst" in text


def test_a_language_model_is_told_in_nats_and_by_its_gap() -> None:
    text = words(rendered("language"))
    gap = MADE["language"].summary.comparison("letters", "teacher")
    assert gap is not None
    assert f"furthest behind on letters: loss (nats) +{gap.difference.value:.3f}" in text
    assert f"+{gap.difference.value:.3f} ±0.013 worst" in text
    for absent in ("Reliability", "keeps least", "flips lost", "missed most", "Out of scope"):
        assert absent not in text
    for present in ("perplexity", "bits per byte", "loss minus teacher's", "loss: worse than on dialogues by"):
        assert present in text


def test_a_teacher_that_is_a_server_is_nowhere_compared_with() -> None:
    text = words(rendered("written"))
    for absent in ("teacher's drop", "minus teacher", "kd keeps", "keeps least", "beyond the teacher's"):
        assert absent not in text
    for present in (
        "The teacher is a server and was not put to the test.",
        "large-1 at teacher.example",
        "Exact match minus unfiltered's",
        "student (unfiltered)",
        "kd's drop",
    ):
        assert present in text


def test_what_the_teacher_wrote_and_how_its_reasoning_holds() -> None:
    text = words(rendered("written"))
    parts = (
        "What the teacher wrote large-1 at teacher.example was asked",
        "verifier 2,926 1,284 43.9 %",
        "kept 1,441 — 48.0 % left",
        "train what the candidate learns 1,441 150,312 0.412 0.731 0.347 0.0 %",
        "paid 1.84",
        "How its reasoning holds 56.1 % [53.0, 59.2] of 2,890 traces end in the right answer.",
        "Of traces of 1–40 words 71.0 % are right, of those of 161–400 words 20.0 %.",
        "chance that a step is right 96.4 %",
        "Perplexity on held-out texts",
        "student (kd) 163,840 9.900 perplexity 19,930.4 2.680",
        "Teachers and their terms",
        "✓ signed off A. Counsel, LEGAL-17, 2026-11-21",
        "https://teacher.example/terms · read on 2026-11-20",
        "elder-2 teacher of what this run starts from ✓ allowed",
    )
    places = [text.index(part) for part in parts]
    assert places == sorted(places)


def test_a_run_without_a_writing_teacher_says_nothing_of_it() -> None:
    text = words(rendered("classified"))
    for absent in ("What the teacher wrote", "How its reasoning holds", "held-out texts"):
        assert absent not in text
    assert "Teachers and their terms" in text


def test_a_written_set_needs_neither_filters_nor_reasoning() -> None:
    bare = make_synthesis(filters=(), rating=None, audit=None, diversity={}, kind="answers")
    html = render_report(replace(MADE["written"], synthesis=bare, terms=None))
    assert Page(html).open == []
    text = words(html)
    assert "What the teacher wrote" in text
    assert "How its reasoning holds" not in text
    assert "distinct-1" not in text


def test_a_classifier_has_flips_calibration_fidelity_scope_and_labels() -> None:
    text = words(rendered("classified"))
    for part in (
        "flips lost flips won",
        "ECE, scaled Brier score",
        "agreement KL (nats) overlap",
        "Out of scope: recipes 800 texts",
        "FPR95, energy",
        "Labels that are missed most on movies",
        "accuracy: worse than on movies by",
        "420 items from 70 sources",
        "mean of the shares",
    ):
        assert part in text


def test_the_page_holds_origins_digests_costs_and_checks(name: str) -> None:
    text = words(rendered(name))
    for part in (
        "1 of 2 checks passed",
        "train labels are balanced warning train: the rarest label has 3 %",
        "a <b>t|st</b>",
        "12 training texts are nearly in tweets",
        MADE[name].decision.digest,
        "f" * 64,
        "Stillhouse 0.1.0",
        "evaluate 1 h 06 min 2 h 11 min 1,211.0 MB",
        "together 1 h 08 min 2 h 14 min 1,912.0 MB",
    ):
        assert part in text


def test_equal_inputs_give_equal_pages_even_after_a_round_trip_through_json(name: str) -> None:
    inputs = MADE[name]
    stored = replace(
        inputs,
        summary=EvaluationSummary.model_validate_json(pretty_json(inputs.summary)),
        timings=Timings.model_validate_json(pretty_json(inputs.timings)),
        decision=Decision.model_validate_json(pretty_json(inputs.decision)),
    )
    assert render_report(stored) == rendered(name)


def test_where_files_lie_is_not_on_the_page() -> None:
    inputs = MADE["language"]
    teacher = inputs.recipe.teacher.model_copy(update={"source": PathSource(path="/somewhere/private/model")})
    html = render_report(replace(inputs, recipe=inputs.recipe.model_copy(update={"teacher": teacher})))
    assert "/somewhere" not in html
    assert "path: model" in html
    assert "policy: quickstart.yaml" in html


def test_the_page_does_without_what_a_run_may_lack(name: str) -> None:
    inputs = MADE[name]
    lacking = {"comparisons": (), "retention": {}, "mean_retention": None, "drops": {}, "excess_drops": {}}
    bare = replace(
        inputs,
        decision=inputs.decision.model_copy(update={"checks": (), "notes": ()}),
        summary=inputs.summary.model_copy(update={"suites": inputs.summary.suites[:1], **lacking}),
        timings=inputs.timings.model_copy(update={"models": {}}),
        histories={},
        tables=(),
        checks=(),
        data_docs=None,
        digests={},
        costs={},
        software="",
    )
    assert Page(render_report(bare)).open == []


@pytest.mark.parametrize(
    ("verdict", "sentence"),
    [("promote", "meets all 4 requirements"), ("inconclusive", "can't settle 1 of 4 requirements")],
)
def test_each_verdict_has_its_sentence(verdict: Any, sentence: str) -> None:
    assert sentence in headline(MADE["classified"].decision.model_copy(update={"verdict": verdict}))
