"""How often the gate promotes: ``python benchmarks/gate.py [--trials 500] [--seed 0] [--out FILE]``.

Answers of a teacher, a champion and a challenger are drawn with known accuracies, item by item, correlated as those of
two trainings are. They go the real way: records, the summary with its paired bootstrap, the decision. Two tables:

- **errors**: the truth lies exactly on a rule's bound, so that a promotion is an error. Nominal is half of what the
  intervals leave out, 2.5 % at 95 %, since only one end of an interval can promote.
- **power**: what becomes of a challenger that truly is so much better or worse than the champion, under a margin of
  non-inferiority. ``foretold`` is the power that the gate itself states for an equally good one, mean over the trials.

Equal seeds give equal tables.
"""

import argparse
import gc
import json
import math
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stillhouse.contract import EvaluationSummary, Verdict
from stillhouse.evaluation import SuiteInfo, summarise
from stillhouse.evaluation.records import SCHEMA
from stillhouse.promotion.gate import decide
from stillhouse.promotion.policy import Policy
from stillhouse.recipe import EvaluationConfig

CHAMPION = 0.85
"""True accuracy of the model in service."""
DISAGREEMENT = 0.10
"""Share of items on which one of champion and challenger is right and the other wrong."""
MARGIN = 0.025
"""That the quickstart's policy allows."""
CONFIG = EvaluationConfig(resamples=1000)
VERDICTS: tuple[Verdict, ...] = ("promote", "inconclusive", "reject")

RULES: dict[str, dict[str, Any]] = {
    "not-worse-than-champion": {"margin": MARGIN},
    "better-than-champion": {},
    "bound": {"metric": "accuracy", "at_least": CHAMPION},
}
ON_THE_BOUND = {"not-worse-than-champion": -MARGIN, "better-than-champion": 0.0, "bound": 0.0}
"""The true gain at which a promotion by this rule alone is an error."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One truth that is drawn many times."""

    items: int
    gain: float
    """True accuracy of the challenger minus the champion's."""
    trials: int
    per_source: int = 1
    """Items that share a source; all of them are answered alike."""


def cells(trials: int) -> list[Cell]:
    """Return what is simulated: the bounds with all trials, the rest of the power curve with fewer."""
    gains = {-2 * MARGIN: 0.3, -MARGIN: 1.0, -MARGIN / 2: 0.3, 0.0: 1.0, MARGIN / 2: 0.3}
    curve = [
        Cell(items=items, gain=gain, trials=math.ceil(share * trials))
        for items in (400, 1600)
        for gain, share in gains.items()
    ]
    return [*curve, Cell(items=1600, gain=-MARGIN, trials=trials, per_source=4)]


def draw_records(cell: Cell, rng: np.random.Generator) -> pa.Table:
    """Draw one evaluation's records. The teacher answers as the champion does."""
    lost, won = (DISAGREEMENT - cell.gain) / 2, (DISAGREEMENT + cell.gain) / 2
    both = CHAMPION - lost
    cases_M = rng.choice(4, size=cell.items // cell.per_source, p=[both, lost, won, 1 - both - lost - won])
    cases_N = np.repeat(cases_M, cell.per_source)
    labels_N = rng.integers(0, 2, cell.items)
    champion_N = cases_N <= 1
    answers = {"teacher": champion_N, "kd": (cases_N == 0) | (cases_N == 2), "champion": champion_N}
    return pa.concat_tables(_records(cell, model, labels_N, correct_N) for model, correct_N in answers.items())


def _records(cell: Cell, model: str, labels_N: np.ndarray, correct_N: np.ndarray) -> pa.Table:
    predictions_N = np.where(correct_N, labels_N, 1 - labels_N)
    probabilities_NC = np.where(predictions_N[:, None] == np.arange(2), 0.9, 0.1).astype(np.float32)
    offsets = np.arange(0, 2 * cell.items + 1, 2, dtype=np.int32)
    columns = {
        "model": pa.repeat(model, cell.items),
        "suite": pa.repeat("home", cell.items),
        "item_id": [f"{item:05d}" for item in range(cell.items)],
        "seed": np.zeros(cell.items, dtype=np.int64),
        "group": [f"{item // cell.per_source:05d}" for item in range(cell.items)],
        "slices": pa.array([[]] * cell.items, pa.list_(pa.string())),
        "label": labels_N,
        "prediction": predictions_N,
        "correct": correct_N,
        "loss": -np.log(np.where(correct_N, 0.9, 0.1)),
        "probabilities": pa.ListArray.from_arrays(offsets, probabilities_NC.ravel()),
        "energy": np.zeros(cell.items),
        "truncated": np.zeros(cell.items, dtype=bool),
    }
    return pa.table(columns, schema=SCHEMA)


def run_trial(cell: Cell, seed: int, trial: int) -> dict[str, tuple[Verdict, float | None]]:
    """Return each rule's verdict on one drawn evaluation, and the power that it states."""
    truth = [cell.items, cell.per_source, round(1e6 * (1 + cell.gain))]
    rng = np.random.default_rng([seed, trial, *truth])
    summary = summarise(
        draw_records(cell, rng),
        config=CONFIG.model_copy(update={"seed": int(rng.integers(1 << 31))}),
        suites=[SuiteInfo(name="home", kind="in-domain", items_sha256="0" * 64)],
    )
    return {kind: _judge(summary, {"kind": kind, "name": "asked", **fields}) for kind, fields in RULES.items()}


def _judge(summary: EvaluationSummary, rule: dict[str, Any]) -> tuple[Verdict, float | None]:
    # A policy must ask something of first models too.
    rules = [rule, {"kind": "minimum-items", "name": "some-items", "items": 1}]
    decision = decide(
        Policy.model_validate({"name": "simulated", "description": "One rule.", "rules": rules}),
        summary,
        timings=None,
        checks=[],
        model_sha256="a" * 64,
        champion_sha256="c" * 64,
        evidence_sha256="e" * 64,
    )
    return decision.verdict, decision.rules[0].power


def simulate(cell: Cell, seed: int, pool: ProcessPoolExecutor) -> dict[str, Any]:
    """Return how often each rule gave each verdict, as shares."""
    found = list(pool.map(partial(run_trial, cell, seed), range(cell.trials), chunksize=20))
    shares: dict[str, dict[str, float]] = {}
    for kind in RULES:
        counts = Counter(trial[kind][0] for trial in found)
        shares[kind] = {verdict: counts[verdict] / cell.trials for verdict in VERDICTS}
    powers = [power for trial in found if (power := trial["not-worse-than-champion"][1]) is not None]
    return {**asdict(cell), "verdicts": shares, "foretold": sum(powers) / len(powers)}


def print_tables(rows: list[dict[str, Any]]) -> None:
    """Print both tables as Markdown."""
    print("| rule, with the truth on its bound | items | sources | trials | promoted, % | nominal, % |")
    print("|---|---:|---:|---:|---:|---:|")
    for kind, bound in ON_THE_BOUND.items():
        for row in (row for row in rows if row["gain"] == bound):
            promoted = row["verdicts"][kind]["promote"]
            error = math.sqrt(promoted * (1 - promoted) / row["trials"])
            sources = row["items"] // row["per_source"]
            print(
                f"| {kind} | {row['items']:,} | {sources:,} | {row['trials']:,} "
                f"| {100 * promoted:.1f} ± {100 * error:.1f} | {50 * (1 - CONFIG.confidence):.1f} |"
            )
    print("\n| items | true gain | trials | promote, % | inconclusive, % | reject, % | foretold at 0, % |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for row in (row for row in rows if row["per_source"] == 1):
        shares = row["verdicts"]["not-worse-than-champion"]
        cells = " | ".join(f"{100 * shares[verdict]:.1f}" for verdict in VERDICTS)
        print(f"| {row['items']:,} | {row['gain']:+.4f} | {row['trials']:,} | {cells} | {100 * row['foretold']:.1f} |")


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=500, help="at each bound; 0.3 times as many elsewhere")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, help="also write the figures there, as JSON")
    options = parser.parse_args()
    rows = []
    # statsmodels collects garbage at each call, through all that was imported, unless that is set aside.
    with ProcessPoolExecutor(options.workers, initializer=gc.freeze) as pool:
        for cell in cells(options.trials):
            rows.append(simulate(cell, options.seed, pool))
            print(f"{cell}: done", file=sys.stderr)
    print_tables(rows)
    if options.out:
        options.out.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
