"""What a teacher wrote and how its reasoning holds, in tables and sentences: for page, card and terminal."""

from collections.abc import Iterator

from stillhouse.contract import Estimate, LengthBin, SynthesisReport, TermsReport, TraceAudit
from stillhouse.evaluation import phrases
from stillhouse.evaluation.tables import Cell, Row, Table

SET_TITLES = {"train": "what the candidate learns", "unfiltered": "as many tokens, before any filter"}
ROLE_TITLES = {
    "teacher": "teacher",
    "candidate-teacher": "candidate of the preflight",
    "inherited": "teacher of what this run starts from",
}
RULING_TITLES = {
    "allowed": ("✓ allowed", "pass"),
    "denied": ("✗ denied", "fail"),
    "needs-sign-off": ("? needs sign-off", "inconclusive"),
    "unknown": ("✗ unknown", "fail"),
}
SIGNED = ("✓ signed off", "pass")


def counts_table(report: SynthesisReport) -> Table:
    """Return what was asked, what came back and what it cost."""
    counts = report.counts
    rows = [
        _fact("answers that were wanted", f"{counts.prompts:,}", f"by {report.teacher}"),
        _fact("refused", *_share(counts.refused, counts.prompts)),
        _fact("cut off at their bound", *_share(counts.truncated, counts.prompts)),
        _fact("empty", *_share(counts.empty, counts.prompts)),
        _fact("tokens read", f"{counts.prompt_tokens:,}", "by the teacher"),
        _fact("tokens written", f"{counts.answer_tokens:,}", "by the teacher"),
    ]
    if counts.cost:
        rows.append(_fact("paid", phrases.money(counts.cost), "at the recipe's prices, whoever paid first"))
    return Table(columns=("what", "number"), rows=tuple(rows))


def funnel_table(report: SynthesisReport) -> Table:
    """Return what each filter took away, in the order in which they were applied, and what was left."""
    rows = [
        Row(
            cells=(
                Cell(text=found.name),
                Cell(text=f"{found.seen:,}"),
                Cell(text=f"{found.removed:,}"),
                Cell(text=_percent(found.removed, found.seen)),
            )
        )
        for found in report.filters
    ]
    wanted = report.filters[0].seen if report.filters else report.kept
    last = (
        Cell(text="kept"),
        Cell(text=f"{report.kept:,}"),
        Cell(),
        Cell(text=f"{_percent(report.kept, wanted)} left"),
    )
    return Table(columns=("filter", "came so far", "removed", "share"), rows=(*rows, Row(cells=last, marked=True)))


def sets_table(report: SynthesisReport) -> Table:
    """Return size and diversity of every set that was made of the answers."""
    with_diversity = bool(report.diversity)
    rows = []
    for name, num_rows in report.rows.items():
        found = report.diversity.get(name)
        figures = (found.distinct_1, found.distinct_2, found.self_bleu) if found else ()
        cells = (
            Cell(text=name, detail=SET_TITLES.get(name, "")),
            Cell(text=f"{num_rows:,}"),
            Cell(text=f"{report.tokens[name]:,}" if name in report.tokens else phrases.NOTHING),
            *(Cell(text=f"{figure:.3f}") for figure in figures),
            *([Cell(text=f"{100 * found.near_duplicates:.1f} %")] if found else []),
            *([Cell()] * 4 if with_diversity and not found else []),
        )
        rows.append(Row(cells=cells))
    diverse = ("distinct-1", "distinct-2", "self-BLEU", "near-duplicates") if with_diversity else ()
    return Table(columns=("set", "rows", "tokens", *diverse), rows=tuple(rows))


def rating_sentence(report: SynthesisReport) -> str:
    """Say how the quality filter came about; empty if there is none."""
    rating = report.rating
    if rating is None:
        return ""
    return (
        f"The teacher rated {rating.rated:,} of them, {rating.mean:.2f} on average (standard deviation "
        f"{rating.standard_deviation:.2f}); {rating.unreadable:,} replies held no rating. A classifier learned the "
        "ratings: on passages that it had not seen, its rank correlation with the teacher's is "
        f"{rating.rank_correlation:.2f}. The rated passages that were kept have {rating.mean_kept:.2f} on average."
    )


def audit_table(audit: TraceAudit) -> Table:
    """Return the figures of the trace audit, with their intervals where they have one."""
    held = audit.right_with_wrong_steps
    rows = [
        _fact("traces", f"{audit.traces:,}", "before any filter"),
        _estimated("right answers", audit.accuracy),
        _fact("traces with steps that could be checked", *_share(audit.checked, audit.traces)),
        _fact("steps that could be checked", f"{audit.steps:,}", f"{audit.wrong_steps:,} of them wrong"),
    ]
    if audit.per_step is not None:
        rows.append(_fact("chance that a step is right", f"{100 * audit.per_step:.1f} %", ""))
    if held:
        rows.append(_estimated("right answers that hold a wrong step", held))
    return Table(columns=("what", "found"), rows=tuple(rows))


def lengths_table(audit: TraceAudit) -> Table:
    """Return accuracy, and the share of right steps, by length."""
    with_steps = any(found.step_accuracy for found in audit.by_length)
    rows = (
        Row(
            cells=(
                Cell(text=words_of(found)),
                Cell(text=f"{found.accuracy.n:,}"),
                _percentage(found.accuracy),
                *([_percentage(found.step_accuracy)] if with_steps else []),
            )
        )
        for found in audit.by_length
    )
    columns = ("words", "traces", "right answers", *(["right steps"] if with_steps else []))
    return Table(columns=columns, rows=tuple(rows))


def audit_sentence(audit: TraceAudit) -> str:
    """Say how the teacher's reasoning holds, and what length does to it."""
    right = f"{phrases.percent(audit.accuracy)} {phrases.percent_interval(audit.accuracy)} of {audit.traces:,} traces"
    told = [f"{right} end in the right answer."]
    if audit.right_with_wrong_steps:
        held = audit.right_with_wrong_steps
        told.append(
            f"Of the right ones whose steps could be checked, {phrases.percent(held)} {phrases.percent_interval(held)} "
            "hold a wrong step."
        )
    if len(audit.by_length) > 1:
        short, long = audit.by_length[0], audit.by_length[-1]
        told.append(
            f"Of traces of {words_of(short)} words {phrases.percent(short.accuracy)} are right, of those of "
            f"{words_of(long)} words {phrases.percent(long.accuracy)}."
        )
    return " ".join(told)


def written_sentences(report: SynthesisReport) -> Iterator[str]:
    """Yield the same in short, for the model card and the terminal."""
    counts = report.counts
    paid = f", for {phrases.money(counts.cost)}" if counts.cost else ""
    yield (
        f"{report.teacher} wrote {counts.answer_tokens:,} tokens in {counts.prompts:,} answers{paid}; {report.kept:,} "
        f"answers passed every filter."
    )
    hardest = max(report.filters, key=lambda found: found.removed, default=None)
    if hardest and hardest.removed:
        yield f"The filter that took away most is {hardest.name}: {hardest.removed:,} of {hardest.seen:,}."
    if report.rating:
        yield rating_sentence(report)
    if report.audit:
        yield audit_sentence(report.audit)


def terms_table(terms: TermsReport) -> Table:
    """Return what the terms policy says about each teacher."""
    rows = []
    for found in terms.findings:
        signed = found.ruling == "needs-sign-off" and found.sign_off
        title, tone = SIGNED if signed else RULING_TITLES[found.ruling]
        who = f"{found.sign_off.by}, {found.sign_off.reference}, {found.sign_off.on}" if found.sign_off else ""
        source = " · ".join(filter(None, (found.citation, f"read on {found.read_on}" if found.read_on else "")))
        cells = (
            Cell(text=found.teacher, detail=ROLE_TITLES[found.role]),
            Cell(text=title, tone=tone, detail=who),
            Cell(text=found.licence, detail=f"provider {found.provider}" if found.provider else ""),
            Cell(text=found.use),
            Cell(text=found.rule or phrases.NOTHING, detail=source),
            *([Cell(text=found.evidence or phrases.NOTHING)] if any(f.evidence for f in terms.findings) else []),
        )
        rows.append(Row(cells=cells))
    evidence = ["evidence"] if any(found.evidence for found in terms.findings) else []
    return Table(columns=("teacher", "ruling", "licence", "use", "rule", *evidence), rows=tuple(rows))


def words_of(found: LengthBin) -> str:
    """Write a bin's bounds: ``41–80``."""
    return f"{found.low:,}–{found.high:,}" if found.low != found.high else f"{found.low:,}"


def _fact(what: str, text: str, detail: str) -> Row:
    return Row(cells=(Cell(text=what), Cell(text=text, detail=detail)))


def _estimated(what: str, estimate: Estimate) -> Row:
    detail = f"{phrases.percent_interval(estimate)} % · {estimate.n:,} traces"
    return _fact(what, phrases.percent(estimate), detail)


def _percentage(estimate: Estimate | None) -> Cell:
    if estimate is None:
        return Cell()
    text, detail = phrases.percent(estimate), f"{phrases.percent_interval(estimate)} %"
    return Cell(text=text, detail=detail, short=phrases.half_width_percent(estimate))


def _share(part: int, whole: int) -> tuple[str, str]:
    return f"{part:,}", _percent(part, whole)


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else phrases.NOTHING
