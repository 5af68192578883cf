"""Answers beside the rows that they belong to: what the filters judge and what becomes a row."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from stillhouse.contract import DataRejected
from stillhouse.models.answers import Answer


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One answer that may be learned from."""

    answer: Answer
    prompt: str | None
    """What the student is asked: the row's prompt, without the words around it that the teacher read. None for texts
    that answer nothing."""
    reference: str
    """The row's text: the right answer, the label, the topic."""

    @property
    def id(self) -> str:
        """Name of the answer: that of its row, and its number."""
        return f"{self.answer.prompt.row}-{self.answer.prompt.sample}"

    @property
    def text(self) -> str:
        """What the student would learn: the answer without outer white space."""
        return self.answer.text.strip()

    @property
    def words(self) -> int:
        """Length of the text."""
        return len(self.answer.text.split())

    @property
    def usable(self) -> bool:
        """Whether there is an answer at all."""
        return bool(self.text) and self.answer.finish != "refusal"


def candidates_of(answers: Sequence[Answer], train: pd.DataFrame) -> list[Candidate]:
    """Put answers beside their rows, in the order of the rows and then of the samples, whatever order they come in.

    Args:
        answers: Of all shards.
        train: The rows that the prompts were made from: ``id``, ``text`` and maybe ``prompt``.

    Raises:
        DataRejected: An answer belongs to no row, or two have the same row and number.
    """
    prompted = "prompt" in train
    places = {row: place for place, row in enumerate(train["id"])}
    if any(answer.prompt.row not in places for answer in answers):
        raise DataRejected("some answers belong to no row of the training set; run the stage 'generate' again")
    ordered = sorted(answers, key=lambda answer: (places[answer.prompt.row], answer.prompt.sample))
    texts, prompts = list(train["text"]), list(train["prompt"]) if prompted else [None] * len(train)
    found = [
        Candidate(answer=answer, prompt=prompts[place], reference=texts[place])
        for answer, place in ((answer, places[answer.prompt.row]) for answer in ordered)
    ]
    if len({(candidate.answer.prompt.row, candidate.answer.prompt.sample) for candidate in found}) < len(found):
        raise DataRejected("some answers occur in two shards; run the stage 'generate' again")
    return found


def texts_frame(candidates: Sequence[Candidate]) -> pd.DataFrame:
    """Return ids, texts and prompts as a set, to compare it with others."""
    columns = {"id": [c.id for c in candidates], "text": [c.text for c in candidates]}
    if any(candidate.prompt is not None for candidate in candidates):
        columns["prompt"] = [candidate.prompt or "" for candidate in candidates]
    return pd.DataFrame(columns, dtype=object)


def scopes_of(candidates: Sequence[Candidate]) -> list[str]:
    """Return what each answer must differ within: the other answers to its prompt, or all texts that have none."""
    return [" ".join((candidate.prompt or "").split()).casefold() for candidate in candidates]
