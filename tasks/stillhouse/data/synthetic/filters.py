"""What an answer must be like before it is learned from. Each filter says how many it took away, never what."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from stillhouse.contract import ConfigurationError, FilterCount
from stillhouse.data.contamination import near_duplicates, near_earlier
from stillhouse.data.languages import known_languages, language_of
from stillhouse.data.prepare import shares_text
from stillhouse.data.synthetic.candidates import Candidate, scopes_of, texts_frame
from stillhouse.recipe import ContaminationConfig
from stillhouse.recipe.synthesis import FilterConfig

REPEATED_WORDS = 4
"""Words of the n-grams by which repetition is measured."""
Candidates = Sequence[Candidate]


@dataclass(frozen=True, kw_only=True)
class Filter:
    """One demand. It sees the answers that all filters before it let pass."""

    name: str
    keep: Callable[[Candidates], Sequence[bool]]
    """For N answers, whether each one stays."""


def apply_filters(candidates: Candidates, filters: Sequence[Filter]) -> tuple[list[Candidate], tuple[FilterCount, ...]]:
    """Return what passes all filters, in its order, and what each filter did."""
    left, counts = list(candidates), []
    for one in filters:
        kept = [candidate for candidate, stays in zip(left, one.keep(left), strict=True) if stays]
        counts.append(FilterCount(name=one.name, seen=len(left), removed=len(left) - len(kept)))
        left = kept
    return left, tuple(counts)


def form_filters(config: FilterConfig) -> list[Filter]:
    """Return the filters that look at one answer alone, in their fixed order.

    Raises:
        ConfigurationError: The pattern is no regular expression, or the language is none that can be told.
    """
    filters = [
        each("empty", lambda candidate: bool(candidate.text)),
        each("refusal", lambda candidate: candidate.answer.finish != "refusal"),
    ]
    if config.truncated == "remove":
        filters.append(each("truncated", lambda candidate: candidate.answer.finish != "length"))
    filters.append(each("words", lambda candidate: config.min_words <= candidate.words <= config.max_words))
    if config.language is not None:
        filters.append(_language_filter(config.language))
    if config.pattern is not None:
        filters.append(_pattern_filter(config.pattern))
    return [*filters, each("repetition", lambda candidate: repetition(candidate.text) <= config.max_repetition)]


def duplicates_filter(config: ContaminationConfig | None) -> Filter:
    """Return the filter that keeps the first of answers that almost equal one another.

    Answers to one prompt are compared with each other, without the prompt; texts without prompts all with all.
    """
    return Filter(name="duplicates", keep=lambda candidates: ~repeats(candidates, config))


def repeats(candidates: Candidates, config: ContaminationConfig | None) -> Any:
    """Mark the answers that equal or almost equal an earlier one: bool (N)."""
    return near_earlier([candidate.text for candidate in candidates], scopes_of(candidates), config)


def held_out_filters(held_out: Mapping[str, pd.DataFrame], config: ContaminationConfig | None) -> list[Filter]:
    """Return the firewall: nothing that is learned may be in a set that tunes or judges.

    Equal texts always go. Texts that almost equal one go if the recipe says ``remove``; otherwise the checks of the
    written set find them, as they do in collected data.

    Args:
        held_out: The sets, by name.
        config: How near is too near; None looks for equal texts only.
    """

    def differs(candidates: Candidates) -> list[bool]:
        frame = texts_frame(candidates)
        shared = [shares_text(frame, other) for other in held_out.values()]
        return [not any(column[row] for column in shared) for row in range(len(frame))]

    def is_far(candidates: Candidates) -> list[bool]:
        assert config is not None
        return [not near for near in near_duplicates(texts_frame(candidates), held_out, config).any(axis=1)]

    filters = [Filter(name="held-out", keep=differs)]
    if config is not None and config.action == "remove":
        filters.append(Filter(name="near-held-out", keep=is_far))
    return filters


def per_problem_filter(most: int) -> Filter:
    """Return the filter that keeps the ``most`` shortest answers to each row."""

    def keep(candidates: Candidates) -> list[bool]:
        by_row: dict[str, list[int]] = {}
        for place, candidate in enumerate(candidates):
            by_row.setdefault(candidate.answer.prompt.row, []).append(place)
        kept = {
            place
            for places in by_row.values()
            for place in sorted(places, key=lambda place: (candidates[place].words, place))[:most]
        }
        return [place in kept for place in range(len(candidates))]

    return Filter(name="per-problem", keep=keep)


def each(name: str, accepts: Callable[[Candidate], bool]) -> Filter:
    """Return a filter that judges every answer by itself."""
    return Filter(name=name, keep=lambda candidates: [accepts(candidate) for candidate in candidates])


def repetition(text: str) -> float:
    """Return the share of a text's word 4-grams that repeat an earlier one; 0 for texts without any."""
    words = text.split()
    grams = [tuple(words[start : start + REPEATED_WORDS]) for start in range(len(words) - REPEATED_WORDS + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _pattern_filter(pattern: str) -> Filter:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigurationError(f"synthesis.filters.pattern is no regular expression ({error}); correct it") from None
    return each("pattern", lambda candidate: compiled.search(candidate.text) is not None)


def _language_filter(language: str) -> Filter:
    if language not in known_languages():
        raise ConfigurationError(f"synthesis.filters.language: {language} can't be identified; leave it out")
    return each("language", lambda candidate: language_of(candidate.text) == language)
