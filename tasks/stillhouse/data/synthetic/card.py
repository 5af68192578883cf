"""The data card of a written set: who wrote it, from what, what was taken away, how it came out."""

from collections.abc import Mapping, Sequence

from stillhouse.contract import SynthesisReport
from stillhouse.recipe import Recipe
from stillhouse.recipe.synthesis import SynthesisConfig


def write_card(recipe: Recipe, report: SynthesisReport, digests: Mapping[str, str]) -> str:
    """Return the card as Markdown. Equal facts give equal cards.

    Args:
        recipe: What was asked for.
        report: What came of it.
        digests: sha256 of every file that the set came from and became, by name.
    """
    assert recipe.synthesis is not None
    parts = [
        f"# Data card: {recipe.data.domain}, {report.kind} written by {report.teacher}",
        _origin(recipe, report),
        _asking(recipe.synthesis),
        _answers(report),
        _filters(report),
        _sets(report),
        *([_quality(report)] if report.rating else []),
        *([_reasoning(report)] if report.audit else []),
        "## Digests\n\n" + _table(("file", "sha256"), [(name, f"`{digest}`") for name, digest in digests.items()]),
    ]
    return "\n\n".join(parts) + "\n"


def _origin(recipe: Recipe, report: SynthesisReport) -> str:
    teacher, train = recipe.teacher, recipe.data.train
    facts = [
        ("written by", report.teacher),
        ("teacher's licence or terms", teacher.licence),
        ("provider", teacher.terms.provider or "none: weights at hand"),
        ("intended use", teacher.terms.use),
        ("evidence of the terms", teacher.terms.evidence or "none given"),
        ("made from", train.origin),
        ("licence of that", train.licence),
    ]
    return "## Origin\n\nThe texts are a model's, not people's.\n\n" + _table(("fact", "value"), facts)


def _asking(synthesis: SynthesisConfig) -> str:
    """Show the templates, which are the recipe's own words, and how the answers were drawn."""
    templates = [("prompt", synthesis.prompt)]
    if synthesis.system is not None:
        templates.insert(0, ("system message", synthesis.system))
    if synthesis.kind == "rationales":
        templates.append(("how the student is asked for the rationale", synthesis.rationale_prompt))
    if synthesis.kind == "textbook" and synthesis.rating is not None:
        templates.append(("how passages are rated", synthesis.rating.prompt))
    if synthesis.kind == "traces" and synthesis.verifier.kind == "judge":
        templates.append(("how answers are judged", synthesis.verifier.prompt))
    settings = [
        ("answers to a prompt", str(synthesis.samples)),
        ("temperature", f"{synthesis.temperature:g}"),
        ("top-p", f"{synthesis.top_p:g}"),
        ("most new tokens", f"{synthesis.max_new_tokens:,}"),
        ("seed", str(synthesis.seed)),
    ]
    if synthesis.kind == "textbook":
        settings += [("audiences", "; ".join(synthesis.audiences)), ("styles", "; ".join(synthesis.styles))]
    if synthesis.kind == "traces":
        settings.append(("verifier", synthesis.verifier.kind))
    shown = "\n\n".join(f"The {name}:\n\n{_quoted(text)}" for name, text in templates)
    return f"## Prompts\n\n{shown}\n\n" + _table(("setting", "value"), settings)


def _answers(report: SynthesisReport) -> str:
    counts = report.counts
    figures = [
        ("answers wanted, reviews included", counts.prompts),
        ("refused", counts.refused),
        ("truncated", counts.truncated),
        ("empty", counts.empty),
        ("tokens read", counts.prompt_tokens),
        ("tokens written", counts.answer_tokens),
    ]
    rows = [(name, f"{figure:,}") for name, figure in figures]
    return "## Answers\n\n" + _table(("what", "count"), [*rows, ("cost", f"{counts.cost:,.4g}")])


def _filters(report: SynthesisReport) -> str:
    rows = [(count.name, f"{count.seen:,}", f"{count.removed:,}") for count in report.filters]
    text = f"In this order; each sees what those before it left. {report.kept:,} answers were kept."
    return f"## Filters\n\n{text}\n\n" + _table(("filter", "seen", "removed"), rows)


def _sets(report: SynthesisReport) -> str:
    rows = []
    for name, count in report.rows.items():
        found = report.diversity.get(name)
        figures = (found.distinct_1, found.distinct_2, found.self_bleu, found.near_duplicates) if found else ()
        rows.append((name, f"{count:,}", f"{report.tokens[name]:,}", *(f"{figure:.3f}" for figure in figures)))
    heads = ("set", "rows", "answer tokens", "distinct-1", "distinct-2", "self-BLEU", "near-duplicates")
    return "## Sets\n\n" + _table(heads, [(*row, *["–"] * (len(heads) - len(row))) for row in rows])


def _quality(report: SynthesisReport) -> str:
    rating = report.rating
    assert rating is not None
    rows = [
        ("passages rated by the teacher", f"{rating.rated:,}"),
        ("replies without a rating", f"{rating.unreadable:,}"),
        ("mean rating", f"{rating.mean:.2f} (standard deviation {rating.standard_deviation:.2f})"),
        ("rank correlation of predicted and given ratings, on unseen folds", f"{rating.rank_correlation:.2f}"),
        ("mean given rating of what was kept", f"{rating.mean_kept:.2f}"),
    ]
    return "## Quality filter\n\n" + _table(("fact", "value"), rows)


def _reasoning(report: SynthesisReport) -> str:
    found = report.audit
    assert found is not None
    accuracy, flawed = found.accuracy, found.right_with_wrong_steps
    rows = [
        ("traces", f"{found.traces:,}"),
        ("right answers", f"{accuracy.value:.1%} ({accuracy.low:.1%} to {accuracy.high:.1%})"),
        ("traces with steps that could be checked", f"{found.checked:,}"),
        ("steps checked", f"{found.steps:,}"),
        ("wrong steps", f"{found.wrong_steps:,}"),
    ]
    if flawed is not None:
        rows.append(("right answers with a wrong step", f"{flawed.value:.1%} ({flawed.low:.1%} to {flawed.high:.1%})"))
    return "## Reasoning, before any filter\n\n" + _table(("fact", "value"), rows)


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}" for line in text.splitlines())


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
