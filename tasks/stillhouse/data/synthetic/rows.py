"""From kept answers to the sets that students learn from."""

import hashlib
from collections.abc import Sequence
from typing import Any

import pandas as pd

from stillhouse.data.synthetic.candidates import Candidate
from stillhouse.models.answers import Answer, TokenChoices
from stillhouse.recipe.synthesis import RationalesConfig, SynthesisConfig

_LABEL = "label"
_RATIONALE = "rationale"


def written_rows(
    candidates: Sequence[Candidate], synthesis: SynthesisConfig, *, teacher: str, train: pd.DataFrame
) -> pd.DataFrame:
    """Turn answers into rows of a set.

    Args:
        candidates: In the order of the rows.
        synthesis: How the student is asked.
        teacher: Who wrote them.
        train: What the prompts were made from.

    Returns:
        ``id``, ``text``, ``teacher``; ``prompt`` unless the texts answer nothing; of rationales also ``weight``.
    """
    if isinstance(synthesis, RationalesConfig):
        return _two_tasks(candidates, synthesis, teacher, train)
    rows = [{"id": c.id, "text": c.text, "prompt": c.prompt, "teacher": teacher} for c in candidates]
    frame = pd.DataFrame(rows, columns=["id", "text", "prompt", "teacher"], dtype=object)
    return frame.drop(columns=[] if "prompt" in train else ["prompt"])


def draw_unfiltered(pool: Sequence[Candidate], tokens: int, *, seed: int) -> list[Candidate]:
    """Draw answers until they have as nearly ``tokens`` tokens as whole answers go, off by half of one at most.

    Which ones depends on the seed and their names alone. They come back in the order of ``pool``.
    """
    drawn: set[str] = set()
    total = 0
    for candidate in sorted(pool, key=lambda candidate: _rank(candidate, seed)):
        size = candidate.answer.answer_tokens
        if abs(total + size - tokens) > abs(total - tokens):
            break
        total += size
        drawn.add(candidate.id)
    return [candidate for candidate in pool if candidate.id in drawn]


def answer_tokens(candidates: Sequence[Candidate]) -> int:
    """Return how many tokens the answers have together, by the teacher's count."""
    return sum(candidate.answer.answer_tokens for candidate in candidates)


def choices_by_row(answers: Sequence[Answer], synthesis: SynthesisConfig | None) -> dict[str, Sequence[TokenChoices]]:
    """Return what a server said about the tokens of its answers, by the id of the row that each became, if it did."""
    ending = f"-{_RATIONALE}" if isinstance(synthesis, RationalesConfig) else ""
    return {f"{a.prompt.row}-{a.prompt.sample}{ending}": a.choices for a in answers if a.choices}


def _two_tasks(
    candidates: Sequence[Candidate], synthesis: RationalesConfig, teacher: str, train: pd.DataFrame
) -> pd.DataFrame:
    """Return two kinds of rows: every label, and the rationales that were kept.

    A row whose rationale was filtered out keeps its label, which no teacher wrote. So that the loss is the
    weighted sum of two means, as equation 3 of Hsieh et al. (2023) has it, the rationales share the weight that one
    for each label would have.
    """
    shared = (1 - synthesis.label_weight) * len(train) / max(1, len(candidates))
    rationales: dict[str, list[dict[str, Any]]] = {}
    for candidate in candidates:
        prompt = synthesis.rationale_prompt.replace("{text}", candidate.prompt or "")
        rationales.setdefault(candidate.answer.prompt.row, []).append(
            {
                "id": f"{candidate.id}-{_RATIONALE}",
                "text": candidate.text,
                "prompt": prompt,
                "teacher": teacher,
                "weight": shared,
            }
        )
    rows: list[dict[str, Any]] = []
    for row, text, prompt in zip(train["id"], train["text"], train["prompt"], strict=True):
        label = {"id": f"{row}-{_LABEL}", "text": text, "prompt": prompt, "teacher": ""}
        rows += [label | {"weight": synthesis.label_weight}, *rationales.get(row, [])]
    frame = pd.DataFrame(rows, columns=["id", "text", "prompt", "teacher", "weight"], dtype=object)
    return frame.astype({"weight": float})


def _rank(candidate: Candidate, seed: int) -> str:
    return hashlib.sha256(f"unfiltered-{seed}\n{candidate.id}".encode()).hexdigest()
