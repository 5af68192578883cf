"""The data card: what it must tell whoever meets the data later, and what it must never hold."""

from pathlib import Path

import pandas as pd
from tiny_synthesis import answer, problems, trace, write_recipe

from stillhouse.contract import AnswerCounts
from stillhouse.data.synthetic.card import write_card
from stillhouse.data.synthetic.curate import curate
from stillhouse.recipe import load_recipe


def test_the_card_says_who_wrote_what_under_which_terms_and_shows_no_text(tmp_path: Path) -> None:
    rows = problems(40)
    synthesis = {"kind": "traces", "samples": 2, "system": "Be exact.\nBe | brief.", "prompt": "Solve: {problem}"}
    recipe = load_recipe(write_recipe(tmp_path, synthesis, rows))
    train = pd.DataFrame([{"id": r["id"], "text": r["answer"], "prompt": r["question"]} for r in rows], dtype=object)
    answers = [
        answer(row["id"], trace(row["question"], wrong=bool(n), words=f"Unmistakable {n}. "), sample=n)
        for row in rows
        for n in range(2)
    ]
    counts = AnswerCounts(prompts=80, answer_tokens=1234, cost=0.5)
    report = curate(recipe, answers, counts, train=train, held_out={}).report
    card = write_card(recipe, report, {"train": "ab" * 32})
    for fact in (
        "traces written by oracle at 127.0.0.1:9",
        "| teacher's licence or terms | CC0-1.0 |",
        "| provider | self-hosted |",
        "generated for tests",
        "> Solve: {problem}",
        "> Be exact.\n> Be | brief.",
        "| verifier | numeric |",
        "| verification | 80 | 40 |",
        "| right answers | 50.0% (",
        f"| train | `{'ab' * 32}` |",
    ):
        assert fact in card
    assert "Unmistakable" not in card
    assert rows[0]["question"] not in card
