"""What a teacher was asked and what it wrote: prompts and answers, and the Parquet file that keeps them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from stillhouse.contract import DataRejected, FinishReason


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One question to a teacher."""

    row: str
    """Id of the row of the training set that it comes from."""
    sample: int
    """Number of the answer among those that come from the same row, from 0."""
    text: str
    """The user's message, or the text to continue."""
    system: str | None = None


@dataclass(frozen=True, kw_only=True)
class TokenChoices:
    """What a server says about one token of its answer."""

    token: str
    alternatives: dict[str, float]
    """Log-probability in nats by token, the most probable ones."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came back."""

    prompt: Prompt
    text: str
    finish: FinishReason
    prompt_tokens: int
    answer_tokens: int
    """By the teacher's count."""
    choices: tuple[TokenChoices, ...] = field(default=())
    """Of every token; empty unless they were asked for."""
    review: str | None = None
    """What the teacher says about this answer: a rating, or a judgement; None unless it was asked."""


_CHOICES = pa.list_(pa.struct([("token", pa.string()), ("alternatives", pa.map_(pa.string(), pa.float64()))]))
SCHEMA = pa.schema(
    [
        pa.field("row", pa.string(), nullable=False),
        pa.field("sample", pa.int32(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("system", pa.string()),
        pa.field("text", pa.string(), nullable=False),
        pa.field("finish", pa.string(), nullable=False),
        pa.field("prompt_tokens", pa.int32(), nullable=False),
        pa.field("answer_tokens", pa.int32(), nullable=False),
        pa.field("choices", _CHOICES),
        pa.field("review", pa.string()),
    ],
    metadata={"schema_id": "stillhouse/answers/1"},
)


def write_answers(answers: Sequence[Answer], path: Path) -> None:
    """Write answers to a Parquet file. Equal answers in equal order give equal bytes."""
    rows = [
        {
            "row": answer.prompt.row,
            "sample": answer.prompt.sample,
            "prompt": answer.prompt.text,
            "system": answer.prompt.system,
            "text": answer.text,
            "finish": answer.finish,
            "prompt_tokens": answer.prompt_tokens,
            "answer_tokens": answer.answer_tokens,
            "choices": [
                {"token": choice.token, "alternatives": list(choice.alternatives.items())} for choice in answer.choices
            ],
            "review": answer.review,
        }
        for answer in answers
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path)


def read_answers(paths: Sequence[Path]) -> list[Answer]:
    """Read what `write_answers` wrote, in the order of the files.

    Raises:
        DataRejected: A file is no file of answers.
    """
    found = []
    for path in paths:
        try:
            table = pq.read_table(path)
        except pa.ArrowInvalid:
            raise DataRejected(f"{path.name}: not a whole Parquet file; run the stage 'generate' again") from None
        if not table.schema.equals(SCHEMA):
            raise DataRejected(f"{path.name}: not a file of answers; run the stage 'generate' again")
        found += [_answer(row) for row in table.to_pylist()]
    return found


def _answer(row: dict[str, object]) -> Answer:
    values: dict[str, object] = {name: row[name] for name in (f.name for f in fields(Answer)) if name in row}
    choices = tuple(
        TokenChoices(token=choice["token"], alternatives=dict(choice["alternatives"]))
        for choice in row["choices"] or ()  # type: ignore[attr-defined]
    )
    prompt = Prompt(row=row["row"], sample=row["sample"], text=row["prompt"], system=row["system"])  # type: ignore[arg-type]
    return Answer(**values | {"prompt": prompt, "choices": choices})  # type: ignore[arg-type]
