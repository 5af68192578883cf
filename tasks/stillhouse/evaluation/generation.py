"""Answers that can be verified: which of a model's answers to the prompts of a set are right.

An answer is compared with the row's text, as the recipe's ``evaluation.generation.compare`` says. The answers
themselves go no further than this module.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Literal

import numpy as np

from stillhouse.contract import DataRejected, Progress
from stillhouse.evaluation.metrics import Bools, Ints
from stillhouse.recipe import GenerationConfig

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from stillhouse.models import Document

Compare = Literal["exact", "normalised", "last-number"]

NUMBER = re.compile(
    r"(?<!\w)(?<!\d\.)[-+]?"
    r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<!\.)\.\d+)"
    r"(?:[eE][-+]?\d{1,3}(?!\w))?",
    re.ASCII,
)
"""With or without thousands separators. A sign after a letter or digit is a dash: ``3-4`` has no -4."""


@dataclass(frozen=True, kw_only=True)
class RightAnswers:
    """What came of asking a model the prompts of N rows."""

    greedy_N: Bools
    """Whether the greedy answer was right."""
    samples_N: Ints
    """How many of the random answers were right."""
    samples: int
    """Random answers per prompt."""


def right_answers(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    rows: "Dataset",
    documents: "Sequence[Document]",
    *,
    config: GenerationConfig,
    batch_size: int,
    seed: int,
    on_progress: Callable[[Progress], None] | None = None,
) -> RightAnswers:
    """Let a model answer the prompts of a set and count what is right.

    Args:
        model: Causal; put into evaluation mode.
        tokenizer: The model's.
        rows: N rows with columns ``id``, ``text`` (the right answer) and ``prompt``.
        documents: Of these rows, in their order.
        config: How to answer and to compare.
        batch_size: Prompts per batch.
        seed: Of the random answers.
        on_progress: Told after each batch, in answers.

    Raises:
        DataRejected: A row has no document, or no number where numbers are compared; or a logit is NaN or infinite.
        ConfigurationError: The model has too few positions for a prompt and its answer.
    """
    from stillhouse.models import answer_prompts

    references = list(rows["text"])
    if [document.id for document in documents] != list(rows["id"]):
        raise DataRejected("some rows have no prompt with an answer; give every row both")
    if config.compare == "last-number" and (without := sum(last_number(text) is None for text in references)):
        raise DataRejected(f"{without} right answers hold no number; choose another evaluation.generation.compare")
    found = answer_prompts(
        model,
        tokenizer,
        documents,
        max_new_tokens=config.max_new_tokens,
        samples=config.samples,
        temperature=config.temperature,
        seed=seed,
        batch_size=batch_size,
        on_progress=on_progress,
    )
    pairs = list(zip(found, references, strict=True))
    right = [[is_right(text, reference, config.compare) for text in given.samples] for given, reference in pairs]
    return RightAnswers(
        greedy_N=np.asarray([is_right(given.greedy, reference, config.compare) for given, reference in pairs]),
        samples_N=np.asarray([sum(row) for row in right], dtype=np.int64),
        samples=config.samples,
    )


def is_right(answer: str, reference: str, compare: Compare) -> bool:
    """Tell whether an answer is right.

    ``exact`` ignores white space around the texts alone, ``normalised`` what `normalised` ignores. A reference of
    nothing but punctuation is compared exactly. ``last-number`` compares the values of the last numbers; a text
    without one is never right.
    """
    if compare == "last-number":
        number = last_number(answer)
        return number is not None and number == last_number(reference)
    if compare == "normalised" and (wanted := normalised(reference)):
        return normalised(answer) == wanted
    return answer.strip() == reference.strip()


def normalised(text: str) -> str:
    """Return a text without case, punctuation and surplus white space, compatible characters made equal (NFKC).

    As in SQuAD's evaluation (Rajpurkar et al. 2016), except that articles count, and so does the punctuation in a
    number: 3.5 is not 35, and -5 is not 5.
    """
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    kept = [char for place, char in enumerate(plain) if _counts(plain, place)]
    return " ".join("".join(kept).split())


def last_number(text: str) -> Decimal | None:
    """Return the last number of a text, such as -1,234.5, or None."""
    found = NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "")) if found else None


def _counts(text: str, place: int) -> bool:
    if not unicodedata.category(text[place]).startswith("P"):
        return True
    before, after = text[place - 1 : place], text[place + 1 : place + 2]
    in_number = before.isdigit() and after.isdigit()
    is_sign = text[place] == "-" and after.isdigit() and not before.isalnum()
    return in_number or is_sign
