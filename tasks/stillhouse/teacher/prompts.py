"""From the rows of a recipe's training set to what the teacher is asked, and what it is asked about its answers."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from stillhouse.models.answers import Answer, Prompt
from stillhouse.recipe.synthesis import RationalesConfig, SynthesisConfig, TextbookConfig, TracesConfig

Row = Mapping[str, str]
"""A row of a frozen set: ``id``, ``text``, and ``prompt`` unless the rows are topics."""


def prompts_of(config: SynthesisConfig, rows: Iterable[Row]) -> list[Prompt]:
    """Return what the teacher is asked about the whole training set. Shards take parts of this list.

    No two prompts have the same row and sample number. Only prompts of equal rows have the same text and sample number.
    """
    if isinstance(config, TextbookConfig):
        return list(_passages(config, list(rows)))
    return [
        Prompt(row=row["id"], sample=sample, text=_fill(config.prompt, _places(config, row)), system=config.system)
        for row in rows
        for sample in range(config.samples)
    ]


def review_prompt(config: SynthesisConfig, row: Row, answer: Answer) -> Prompt | None:
    """Return what the teacher is asked about one of its answers, or None.

    Traces are judged where the verifier is a judge, and a share of the passages is rated where the recipe has a rating;
    a hash of seed, row and sample number decides which. Empty and refused answers are beyond a review.

    Args:
        config: What was written.
        row: That the answer comes from.
        answer: To review.
    """
    if not answer.text.strip() or answer.finish == "refusal":
        return None
    if isinstance(config, TracesConfig) and config.verifier.kind == "judge":
        values = {"question": row["prompt"], "answer": answer.text, "reference": row["text"]}
        return _review(answer, _fill(config.verifier.prompt, values))
    if isinstance(config, TextbookConfig) and config.rating is not None:
        key = f"{config.rating.seed}:{answer.prompt.row}:{answer.prompt.sample}"
        if _fraction(key) < config.rating.share:
            return _review(answer, _fill(config.rating.prompt, {"text": answer.text}))
    return None


def _review(answer: Answer, text: str) -> Prompt:
    """The system message is about writing, so a review has none."""
    return Prompt(row=answer.prompt.row, sample=answer.prompt.sample, text=text)


def _places(config: SynthesisConfig, row: Row) -> dict[str, str]:
    """Return what stands for each place of the template, by its name."""
    if isinstance(config, TracesConfig):
        return {"problem": row["prompt"]}
    if isinstance(config, RationalesConfig):
        return {"text": row["prompt"], "label": row["text"]}
    return {"prompt": row["prompt"]}


def _passages(config: TextbookConfig, topics: Sequence[Row]) -> Iterator[Prompt]:
    """Go round the topics; each has another audience and style in every round, until all pairs were had.

    In a round every pair of audience and style is had by as many topics as the others, give or take one.
    """
    generator = np.random.default_rng(config.seed)
    order = generator.permutation(len(topics))
    pairs = [
        {"audience": audience, "style": style}
        for audience in _varied(config, "audience", config.audiences)
        for style in _varied(config, "style", config.styles)
    ]
    generator.shuffle(pairs)
    for number in range(config.passages):
        turn, place = divmod(number, len(topics))
        topic, pair = topics[order[place]], pairs[(place + turn) % len(pairs)]
        text = _fill(config.prompt, {"topic": topic["text"], **pair})
        for sample in range(turn * config.samples, (turn + 1) * config.samples):
            yield Prompt(row=topic["id"], sample=sample, text=text, system=config.system)


def _varied(config: TextbookConfig, place: str, values: Sequence[str]) -> Sequence[str]:
    """Return the values, or the first one where the template does not tell them apart."""
    return list(dict.fromkeys(values)) if f"{{{place}}}" in config.prompt else values[:1]


def _fill(template: str, values: Mapping[str, str]) -> str:
    """Put each value at its place. What looks like a place in a value, or like another one in the template, stays."""
    names = "|".join(values)
    return re.sub(r"\{(" + names + r")\}", lambda found: values[found[1]], template)


def _fraction(key: str) -> float:
    """Return a number in [0, 1) that belongs to the key."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:7]) / 2**56
