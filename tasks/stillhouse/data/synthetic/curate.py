"""The whole way from a teacher's answers to the sets that students learn from, and the report about it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from stillhouse.contract import AnswerCounts, DataRejected, RatingFacts, SynthesisReport
from stillhouse.data.report import Dropped
from stillhouse.data.synthetic.audit import Trace, audit
from stillhouse.data.synthetic.candidates import Candidate, candidates_of, scopes_of
from stillhouse.data.synthetic.diversity import measure_diversity
from stillhouse.data.synthetic.filters import (
    Filter,
    apply_filters,
    duplicates_filter,
    each,
    form_filters,
    held_out_filters,
    per_problem_filter,
    repeats,
)
from stillhouse.data.synthetic.quality import Embed, keep_best, word_counts
from stillhouse.data.synthetic.rows import answer_tokens, draw_unfiltered, written_rows
from stillhouse.data.synthetic.verifiers import open_verifier
from stillhouse.models.answers import Answer
from stillhouse.recipe import Recipe
from stillhouse.recipe.synthesis import LimitsConfig, RatingConfig, TextbookConfig, TracesConfig


@dataclass(frozen=True, kw_only=True)
class Curated:
    """What became of the answers."""

    train: pd.DataFrame
    """See `written_rows`."""
    unfiltered: pd.DataFrame | None
    """As many tokens of answers before any filter but the firewall; None unless it is among the controls."""
    report: SynthesisReport
    dropped: Dropped
    """What the firewall and the search for duplicates took away."""
    shares: dict[str, float]
    """Of all answers: ``refused``, ``truncated``, ``empty``, ``duplicates``."""

    @property
    def metrics(self) -> dict[str, float]:
        """The figures of the report that are worth a curve over runs."""
        report = self.report
        figures = {f"rows.{name}": float(count) for name, count in report.rows.items()}
        figures |= {f"tokens.{name}": float(count) for name, count in report.tokens.items()}
        figures |= {f"removed.{count.name}": float(count.removed) for count in report.filters}
        figures |= {f"share.{name}": share for name, share in self.shares.items()}
        figures |= {f"self_bleu.{name}": found.self_bleu for name, found in report.diversity.items()}
        if report.audit is not None:
            figures |= {"accuracy": report.audit.accuracy.value, "wrong_steps": float(report.audit.wrong_steps)}
        return figures


def curate(
    recipe: Recipe,
    answers: Sequence[Answer],
    counts: AnswerCounts,
    *,
    train: pd.DataFrame,
    held_out: Mapping[str, pd.DataFrame],
    embed: Embed = word_counts,
) -> Curated:
    """Filter, verify and draw. Equal answers give equal sets and reports, in whatever shards and order they come.

    The filters are applied in this order: ``empty``, ``refusal``, ``truncated``, ``words``, ``language``, ``pattern``,
    ``repetition``; for traces ``verification`` and ``steps``; ``duplicates``, ``held-out``, ``near-held-out``; then
    what chooses among the good ones: ``per-problem`` for traces, ``rating`` for passages.

    Args:
        recipe: With a section ``synthesis``.
        answers: Of all shards.
        counts: Of all shards, summed.
        train: The rows that the prompts were made from.
        held_out: The sets that tune or judge, by name; nothing of them may be learned.
        embed: What the quality filter sees of a passage.

    Raises:
        DataRejected: There are no answers, they don't belong to ``train``, or a reference can't be verified.
        NotPermitted: Generated code would have to be run.
        ConfigurationError: A filter can't be built.
    """
    synthesis = recipe.synthesis
    assert synthesis is not None
    candidates = candidates_of(answers, train)
    if not candidates:
        raise DataRejected("there are no answers to curate; is data.train empty?")
    contamination = recipe.data.contamination
    firewall = held_out_filters(held_out, contamination)
    traces = _verified(candidates, synthesis) if isinstance(synthesis, TracesConfig) else {}
    filters = [
        *form_filters(synthesis.filters),
        *(_trace_filters(synthesis, traces) if isinstance(synthesis, TracesConfig) else []),
        *([duplicates_filter(contamination)] if synthesis.filters.duplicates == "remove" else []),
        *firewall,
    ]
    rating = _Rating(synthesis, embed)
    if isinstance(synthesis, TracesConfig) and synthesis.per_problem is not None:
        filters.append(per_problem_filter(synthesis.per_problem))
    kept, filtered = apply_filters(candidates, [*filters, *rating.filters])
    drawn = {"train": kept}
    if "unfiltered" in synthesis.controls:
        pool, _ = apply_filters([candidate for candidate in candidates if candidate.usable], firewall)
        drawn["unfiltered"] = draw_unfiltered(pool, answer_tokens(kept), seed=synthesis.seed)
    frames = {
        name: written_rows(chosen, synthesis, teacher=recipe.teacher.title, train=train)
        for name, chosen in drawn.items()
    }
    removed = {count.name: count.removed for count in filtered}
    return Curated(
        train=frames["train"],
        unfiltered=frames.get("unfiltered"),
        report=SynthesisReport(
            kind=synthesis.kind,
            teacher=recipe.teacher.title,
            counts=counts,
            filters=filtered,
            kept=len(kept),
            rows={name: len(frame) for name, frame in frames.items()},
            tokens={name: answer_tokens(chosen) for name, chosen in drawn.items()},
            diversity={
                name: measure_diversity([c.text for c in chosen], scopes_of(chosen), contamination)
                for name, chosen in drawn.items()
                if chosen
            },
            rating=rating.facts,
            audit=audit(list(traces.values())) if traces else None,
        ),
        dropped=Dropped(
            duplicates=removed.get("duplicates", 0),
            held_out=removed["held-out"],
            contaminated=removed.get("near-held-out", 0),
        ),
        shares=_shares(candidates, repeats(candidates, contamination)),
    )


def reject_if_beyond_limits(curated: Curated, limits: LimitsConfig) -> None:
    """Let a set pass that the teacher wrote well enough.

    Raises:
        DataRejected: A share is above its bound, or too few answers were kept. One line says which, and what to do.
    """
    advice = {
        "refused": "change synthesis.prompt or the teacher",
        "truncated": "raise synthesis.max_new_tokens",
        "empty": "change synthesis.prompt or the teacher",
        "duplicates": "raise synthesis.temperature or ask for fewer synthesis.samples",
    }
    for name, action in advice.items():
        share, bound = curated.shares[name], getattr(limits, f"max_{name}")
        if share > bound:
            raise DataRejected(
                f"{share:.1%} of the answers are {name}, more than synthesis.limits.max_{name} {bound:.1%}; "
                f"{action}, or raise the limit"
            )
    if curated.report.kept < limits.min_kept:
        worst = max(curated.report.filters, key=lambda count: count.removed)
        raise DataRejected(
            f"{curated.report.kept:,} answers passed all filters, fewer than synthesis.limits.min_kept "
            f"{limits.min_kept:,}; filter '{worst.name}' removed most ({worst.removed:,} of {worst.seen:,}); ask for "
            "more answers, or loosen it"
        )


class _Rating:
    """The quality filter, and what it says about itself once it was applied."""

    def __init__(self, synthesis: object, embed: Embed) -> None:
        config = synthesis.rating if isinstance(synthesis, TextbookConfig) else None
        self.facts: RatingFacts | None = None
        self.filters = [self._filter(config, embed)] if config else []

    def _filter(self, config: RatingConfig, embed: Embed) -> Filter:
        def keep(candidates: Sequence[Candidate]) -> list[bool]:
            kept_N, self.facts = keep_best(candidates, config, embed)
            return [bool(kept) for kept in kept_N]

        return Filter(name="rating", keep=keep)


def _verified(candidates: Sequence[Candidate], synthesis: TracesConfig) -> dict[str, Trace]:
    """Judge every answer, by its id: the audit is about all of them."""
    with open_verifier(synthesis.verifier) as verifier:
        return {c.id: Trace(c, c.usable and verifier.accepts(c.answer, c.reference)) for c in candidates}


def _trace_filters(synthesis: TracesConfig, traces: Mapping[str, Trace]) -> list[Filter]:
    filters = [each("verification", lambda candidate: traces[candidate.id].right)]
    if (most := synthesis.max_wrong_steps) is not None:
        filters.append(each("steps", lambda candidate: traces[candidate.id].wrong_steps <= most))
    return filters


def _shares(candidates: Sequence[Candidate], repeated_N: Sequence[bool]) -> dict[str, float]:
    marks = {
        "refused": [candidate.answer.finish == "refusal" for candidate in candidates],
        "truncated": [candidate.answer.finish == "length" for candidate in candidates],
        "empty": [candidate.answer.finish != "refusal" and not candidate.text for candidate in candidates],
        "duplicates": repeated_N,
    }
    return {name: float(np.mean(marked)) for name, marked in marks.items()}
