"""Where the time of a workflow went and what came of it: ``python benchmarks/quickstart.py [RUN_FOLDER] [RECIPE]``.

Reads what the runs of a recipe left in the store of a quickstart (by default ``.run``) and prints Markdown: seconds by
task, the share of the wall time in which no stage was at work, and the student beside its teacher.
"""

import sys
from datetime import UTC, datetime
from pathlib import Path

from stillhouse.contract import EvaluationSummary, StageResult, TaskRecord, Timings
from stillhouse.stages.records import read_records, read_result
from stillhouse.store import open_store, read_artifact

Interval = tuple[float, float]


def main() -> None:
    """Print one section for each run, oldest first, and the student of the newest."""
    arguments = [*sys.argv[1:], *[".run", "quickstart"][len(sys.argv) - 1 :]]
    store = open_store(f"file://{Path(arguments[0]).resolve() / 'store'}")
    runs = sorted({key.split("/")[1] for key in store.keys(f"runs/{arguments[1]}__")})
    records: dict[str, TaskRecord] = {}
    for run_id in runs:
        records = read_records(store, run_id)
        print_run(run_id, records)
    print_student(read_result(records["evaluate"].result))


def print_run(run_id: str, records: dict[str, TaskRecord]) -> None:
    """Print the seconds of every task and the overhead of orchestration."""
    began = datetime.strptime(run_id.rsplit("run-", 1)[1], "%Y%m%d-%H%M%S").replace(tzinfo=UTC).timestamp()
    ended = max(record.updated_at for record in records.values()).timestamp()
    print(f"\n### {run_id}\n\n| task | state | seconds | what came of it |\n|---|---|---:|---|")
    intervals = []
    for task_id, record in sorted(records.items(), key=lambda item: item[1].updated_at):
        result = read_result(record.result) if record.result else None
        fresh = result is not None and record.state == "succeeded"
        seconds = f"{result.seconds:.1f}" if fresh and result else ""
        if fresh and result:
            intervals.append((result.started_at.timestamp(), result.finished_at.timestamp()))
        print(f"| {task_id} | {record.state} | {seconds} | {record.message} |")
    wall, busy = ended - began, covered(intervals)
    print(f"\nFrom the trigger to the end {wall:.0f} s, of which some stage was at work for {busy:.0f} s:")
    print(f"orchestration took {wall - busy:.0f} s, {(wall - busy) / wall:.0%} of the wall time.")


def covered(intervals: list[Interval]) -> float:
    """Return the length of the union of intervals."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(intervals):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


def print_student(result: StageResult) -> None:
    """Print retention, size and speed of the candidate beside its teacher."""
    summary = EvaluationSummary.model_validate_json(read_artifact(result.outputs["summary"]))
    timings = Timings.model_validate_json(read_artifact(result.outputs["timings"])).models
    teacher, student = timings["teacher"], timings[summary.candidate]
    print("\n### The student\n\n| suite | n | teacher | student | sft control | before | retention |")
    print("|---|---:|---|---|---|---|---|")
    for suite in summary.suites:
        cells = [
            f"{score.accuracy.value:.3f} [{score.accuracy.low:.3f}, {score.accuracy.high:.3f}]" if score else ""
            for score in (suite.models.get(name) for name in ("teacher", summary.candidate, "sft", "start"))
        ]
        kept = summary.retention[suite.name]
        row = [suite.name, str(suite.num_items), *cells, f"{kept.value:.3f} [{kept.low:.3f}, {kept.high:.3f}]"]
        print("| " + " | ".join(row) + " |")
    print("\n| | teacher | student | ratio |\n|---|---:|---:|---:|")
    for name, a, b in (
        ("parameters, M", teacher.parameters / 1e6, student.parameters / 1e6),
        ("weights, MB", teacher.num_bytes / 1e6, student.num_bytes / 1e6),
        ("latency at batch 1, median ms", teacher.latency_p50_ms, student.latency_p50_ms),
        ("throughput, texts/s", teacher.throughput, student.throughput),
    ):
        print(f"| {name} | {a:.1f} | {b:.1f} | {b / a:.2f} |")


if __name__ == "__main__":
    main()
