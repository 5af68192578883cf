"""A stand-in for ``stillhouse stage``: the real runner around stages that take no time and need no models.

What it does beside that is told by the environment, in ``FAKE_STAGE``: JSON from task id to behaviour, or the path of a
file that holds it. ``exit``: end with this code. ``kill``: SIGKILL itself. ``times``: only on the first tries.
``allocate``: GiB of memory to ask for. ``sleep``: seconds of work. ``verdict``: what ``decide`` says.
"""

import json
import os
import signal
import sys
import time
import types
from dataclasses import replace
from pathlib import Path

from stillhouse.contract import (
    Decision,
    Estimate,
    EvaluationSummary,
    ExitCode,
    ModelScores,
    ModelTiming,
    Progress,
    Promotion,
    StageRequest,
    StillhouseError,
    SuiteSummary,
    Timings,
    exit_code_of,
    pretty_json,
)
from stillhouse.orchestration.plan import plan
from stillhouse.stages import CATALOG, StageContext, StageOutcome, run_stage, stop_on_sigterm
from stillhouse.store import locate
from stillhouse.teacher.terms import load_terms, terms_report

ALWAYS = {"decide": ("decision", "card", "report"), "promote": ("promotion",)}


def outputs(context: StageContext) -> list[str]:
    """Return what other tasks want from this one."""
    wanted = {
        output
        for task in plan(context.recipe)
        for origin, output in task.inputs.values()
        if origin == context.request.task_id
    }
    return sorted(wanted | set(ALWAYS.get(context.request.stage, ())))


def behaviour(task_id: str) -> dict[str, object]:
    told = os.environ.get("FAKE_STAGE", "{}")
    return json.loads(Path(told).read_text() if told.startswith("/") else told).get(task_id, {})


def first_tries(context: StageContext, times: object) -> bool:
    counter = context.workspace / "tries"
    tries = int(counter.read_text()) if counter.exists() else 0
    counter.write_text(str(tries + 1))
    return not isinstance(times, int) or tries < times


def run(context: StageContext) -> StageOutcome:
    told = behaviour(context.request.task_id)
    sys.stdout.write(f"fake work on {context.request.task_id}\n")
    sys.stdout.flush()
    if first_tries(context, told.get("times")):
        if told.get("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        bytearray(int(float(str(told.get("allocate", 0))) * (1 << 30)))
        if "exit" in told:
            raise SystemExit(told["exit"])
    steps = int(float(str(told.get("sleep", 0))) * 10)
    for step in range(steps):
        context.report_progress(
            Progress(done=step + 1, total=steps, unit="steps", rate=80.0, seconds_left=(steps - step) / 10)
        )
        time.sleep(0.1)
    for name in outputs(context):
        context.save_bytes(name, content(context, name, told), ".md" if name == "card" else ".json")
    return StageOutcome(summary=f"{context.request.task_id} did its work")


def content(context: StageContext, name: str, told: dict[str, object]) -> bytes:
    if name == "decision":
        return pretty_json(decision(str(told.get("verdict", "promote"))))
    if name == "summary":
        return pretty_json(summary())
    if name == "card":
        return b"# Promote?\n\n| rule | outcome |\n|---|---|\n| floor | pass |\n"
    if name == "promotion":
        return pretty_json(promotion())
    if name == "timings":
        return pretty_json(timings())
    if name == "terms":
        return pretty_json(terms_report(context.recipe, policy=load_terms()))
    return pretty_json({"task": context.request.task_id, "output": name})


def decision(verdict: str) -> Decision:
    digest = "0" * 64
    return Decision(
        verdict=verdict,
        candidate="kd",
        model_sha256=digest,
        champion_sha256=None,
        policy="toy",
        policy_sha256=digest,
        evidence_sha256=digest,
        rules=(),
    )


def promotion() -> Promotion:
    return Promotion(
        model="toy",
        version=1,
        model_sha256="0" * 64,
        aliases={"champion": 1},
        champion_before=None,
        ledger_sequence=1,
        ledger_sha256="0" * 64,
        already_champion=False,
    )


def timings() -> Timings:
    timing = ModelTiming(parameters=10, num_bytes=40, latency_p50_ms=1.0, latency_p95_ms=2.0, throughput=100.0)
    return Timings(threads=1, num_items=10, models={"kd": timing})


def summary() -> EvaluationSummary:
    sure = Estimate(value=0.9, low=0.9, high=0.9, standard_error=0.0, n=10)
    suite = SuiteSummary(
        name="movies",
        kind="in-domain",
        metric="accuracy",
        num_items=10,
        num_groups=10,
        items_sha256="0" * 64,
        models={"kd": ModelScores(metrics={"accuracy": sure}, truncated=0)},
    )
    return EvaluationSummary(
        confidence=0.95,
        resamples=100,
        candidate="kd",
        models=("kd",),
        suites=(suite,),
        comparisons=(),
        retention={},
        mean_retention=None,
        drops={},
        excess_drops={},
    )


def main(stage: str, uri: str, work: str) -> int:
    stop_on_sigterm()
    for name, spec in CATALOG.items():
        CATALOG[name] = replace(spec, tracked=False)
        sys.modules[spec.module] = types.ModuleType(spec.module)
        sys.modules[spec.module].run = run
    store, key = locate(uri)
    request = StageRequest.model_validate_json(store.get(key))
    assert request.stage == stage
    try:
        run_stage(request, work=Path(work))
    except SystemExit as told:
        return int(told.code or 0)
    except StillhouseError as error:
        return exit_code_of(error)
    return ExitCode.OK


if __name__ == "__main__":
    arguments = dict(zip(sys.argv[2::2], sys.argv[3::2], strict=True))
    sys.exit(main(sys.argv[1], arguments["--request"], arguments["--work"]))
