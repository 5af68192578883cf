"""The command ``stillhouse``."""

import getpass
import json
import logging
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from pydantic import ValidationError

from stillhouse.contract import ConfigurationError, ExitCode, StageRequest, be_quiet, exit_code_of, pretty_json
from stillhouse.recipe import Recipe, explain, load_recipe, new_recipe
from stillhouse.store import locate, open_store

app = typer.Typer(
    help="Turns large language models into small, fast ones, on a schedule, with proof.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
recipe_app = typer.Typer(help="Write and check recipes.", no_args_is_help=True)
app.add_typer(recipe_app, name="recipe")

logger = logging.getLogger("stillhouse")

RecipeArgument = Annotated[str, typer.Argument(help="Name of a recipe in dags/recipes, or a path to a YAML file.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Replace a value, such as distillation.alpha=0.3; repeatable."),
]
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="Name of the registered model.")]
StoreOption = Annotated[
    str, typer.Option(envvar="STILLHOUSE_STORE", help="Object store with the ledger: a folder or s3://BUCKET/PREFIX.")
]
TrackingOption = Annotated[
    str | None, typer.Option(envvar="MLFLOW_TRACKING_URI", help="MLflow server with the registered model.")
]


@app.command()
def stage(
    name: Annotated[str, typer.Argument(help="The stage, as a check that the request is meant for it.")],
    request: Annotated[str, typer.Option(help="URI or path of the request.")],
    work: Annotated[Path, typer.Option(help="Folder for files that outlive a killed process.")] = Path(".run/work"),
) -> None:
    """Run one stage of a workflow: read a request, write its outputs, then result.json."""
    from stillhouse.stages import follow_stage, follows, run_stage, stop_on_sigterm

    stop_on_sigterm()
    asked = _read_request(name, request)
    if follows():
        follow_stage(asked, work=work)
        return
    typer.echo(json.dumps(run_stage(asked, work=work).model_dump()))


@app.command()
def run(
    recipe: RecipeArgument,
    settings: SetOption = None,
    store: Annotated[str, typer.Option(help="The object store: a folder, or s3://BUCKET/PREFIX.")] = ".run/store",
    work: Annotated[Path, typer.Option(help="Folder for files that outlive a killed process.")] = Path(".run/work"),
    tracking: Annotated[
        str | None, typer.Option(help="MLflow server to track and register at; without one, nothing is promoted.")
    ] = None,
) -> None:
    """Run a whole workflow in this process, without Airflow."""
    from stillhouse.orchestration.deployment import Deployment
    from stillhouse.orchestration.inprocess import run_workflow
    from stillhouse.orchestration.outcome import print_task, show_outcome

    deployment = Deployment(store=open_store(store).root, work=work.resolve(), tracking_uri=tracking)
    loaded = load_recipe(find_recipe(recipe), _overrides(settings))
    run_id = f"{loaded.name}-{datetime.now(UTC):%Y%m%dT%H%M%S}"
    results = run_workflow(loaded, run_id=run_id, deployment=deployment, on_task=print_task)
    raise typer.Exit(show_outcome(results))


@app.command()
def report(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's id, its unique beginning, or latest.")] = "latest",
    store: Annotated[str, typer.Option(help="The object store: a folder, or s3://BUCKET/PREFIX.")] = ".run/store",
    html: Annotated[Path | None, typer.Option(help="Also write a copy of the report's page here.")] = None,
) -> None:
    """Print what a finished run found, and say where its report lies."""
    from stillhouse.orchestration.outcome import show_outcome
    from stillhouse.orchestration.reading import find_run, read_run, report_page
    from stillhouse.store import read_artifact

    opened = open_store(store)
    run_id = find_run(opened, run)
    results = read_run(opened, run_id)
    typer.echo(run_id)
    show_outcome(results)
    page = report_page(results)
    typer.echo(f"report: {page.uri}")
    if html is not None:
        try:
            html.write_bytes(read_artifact(page))
        except OSError as error:
            raise ConfigurationError(f"{html}: {error.strerror}; name another file for --html") from None
        typer.echo(f"copy: {html}")


@app.command()
def front(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Whose test set counts: an id, or latest.")] = "latest",
    store: Annotated[str, typer.Option(help="The object store: a folder, or s3://BUCKET/PREFIX.")] = ".run/store",
) -> None:
    """Print the models of all runs on one test set, and which of them none beats in quality and cost."""
    from stillhouse.contract import EvaluationSummary
    from stillhouse.orchestration.front import gather, render
    from stillhouse.orchestration.outcome import read_document, result_console
    from stillhouse.orchestration.reading import find_run, read_run
    from stillhouse.stages.records import read_result

    opened = open_store(store)
    results = read_run(opened, find_run(opened, run))
    home = read_document(read_result(results["evaluate"]).outputs["summary"], EvaluationSummary).suites[0]
    result_console().print(render(gather(opened, home), home))


@app.command()
def estimate(
    tokens: Annotated[
        float | None,
        typer.Option(min=1, help="Training tokens, such as 20e9; without them, the jobs of infra/SCALING.md."),
    ] = None,
    teacher: Annotated[float, typer.Option(min=1, help="Parameters of the teacher.")] = 8e9,
    student: Annotated[float, typer.Option(min=1, help="Parameters of the student.")] = 1e9,
    devices: Annotated[int, typer.Option(min=1, help="GPUs.")] = 8,
    shards: Annotated[int | None, typer.Option(min=1, help="Scoring tasks; by default one a GPU.")] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Machines that train together.")] = 1,
    epochs: Annotated[float, typer.Option(min=0.01, help="Passes over the data.")] = 1,
    price: Annotated[float | None, typer.Option(min=0, help="Of a GPU for an hour, in dollars.")] = None,
) -> None:
    """Say what distilling a language model takes, on paper: hours, money, bytes."""
    from stillhouse.orchestration.estimate import H100, JOBS, Job, render

    hardware = H100 if price is None else H100.model_copy(update={"price": price})
    jobs: tuple[Job, ...] = JOBS
    if tokens is not None:
        shape = {"devices": devices, "shards": shards or devices, "nodes": nodes, "epochs": epochs}
        jobs = (Job(name="yours", tokens=tokens, teacher=teacher, student=student, **shape),)
    typer.echo(render(jobs, hardware))


@app.command()
def preflight(
    recipe: RecipeArgument,
    settings: SetOption = None,
    store: Annotated[str, typer.Option(help="Object store: a folder or s3://BUCKET/PREFIX.")] = ".run/store",
    work: Annotated[Path, typer.Option(help="Folder for files that outlive a killed process.")] = Path(".run/work"),
) -> None:
    """Foretell, by small trainings, whether distillation will beat plain fine-tuning, and with which teacher."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in a stage; read when torch is loaded
    from rich.console import Console

    from stillhouse.stages import stop_on_sigterm
    from stillhouse.stages.permit import judge_teachers
    from stillhouse.teacher.terms import insist

    loaded = load_recipe(find_recipe(recipe), _overrides(settings))
    insist(judge_teachers(loaded, candidates=True))  # before anything is loaded
    from stillhouse.training.preflight import following, render
    from stillhouse.training.preflight import preflight as foretell

    stop_on_sigterm()
    logging.disable(logging.INFO)  # the progress says it
    console = Console(width=None if sys.stdout.isatty() else 120)
    with following(console) as on_progress:
        prediction = foretell(loaded, store=open_store(store), work=work.resolve(), on_progress=on_progress)
    console.print(render(prediction))


@app.command()
def quickstart(
    recipe: RecipeArgument = "quickstart",
    stop: Annotated[bool, typer.Option("--stop", help="Stop the servers when the workflow has ended.")] = False,
    settings: SetOption = None,
) -> None:
    """Run a workflow through a real Airflow and MLflow on this machine, and follow it."""
    from stillhouse.orchestration.quickstart import run_quickstart

    raise typer.Exit(run_quickstart(find_recipe(recipe), overrides=_overrides(settings), keep=not stop))


@app.command()
def verify(
    model_uri: Annotated[
        str, typer.Argument(help="models:/NAME@ALIAS, models:/NAME/VERSION, or a folder with a model.")
    ],
    tracking: TrackingOption = None,
    key: Annotated[
        Path | None, typer.Option(help="PEM file of the public key; by default that of STILLHOUSE_VERIFY_KEY.")
    ] = None,
    store: Annotated[str | None, typer.Option(help="Object store whose ledger must hold the model.")] = None,
) -> None:
    """Check a model's files, digests, signature and ledger entry, without loading it."""
    from stillhouse.promotion.signing import SigningKeys, read_public_key
    from stillhouse.promotion.verify import print_checks, verify_model

    keys = None if key else SigningKeys.from_environment()
    own_pem = keys.public_pem if keys else None
    checks = verify_model(
        model_uri,
        tracking_uri=tracking,
        public_pem=read_public_key(key) if key else own_pem,
        store=open_store(store) if store else None,
    )
    print_checks(model_uri, checks)
    failed = [check for check in checks if check.outcome is False]
    for check in failed:
        typer.secho(f"stillhouse: {check.subject}: {check.detail}", fg="red", err=True)
    raise typer.Exit(ExitCode.DATA if failed else ExitCode.OK)


@app.command()
def rollback(
    model: ModelArgument,
    reason: Annotated[str, typer.Option(help="Why; the ledger keeps it.")],
    to: Annotated[
        int | None,
        typer.Option(metavar="VERSION", help="Version to go back to; by default the champion before today's."),
    ] = None,
    by: Annotated[str | None, typer.Option(help="Who asks for it; by default this machine's user.")] = None,
    store: StoreOption = ".run/store",
    tracking: TrackingOption = None,
) -> None:
    """Make an earlier champion the champion again: verified first, in under a minute, without a GPU."""
    from stillhouse.orchestration.operations import run_rollback

    run_rollback(model, store=store, tracking_uri=tracking, target=to, reason=reason, who=by or getpass.getuser())


@app.command()
def reconcile(
    model: ModelArgument,
    repair: Annotated[bool, typer.Option(help="Put right what a killed process left half done.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    store: StoreOption = ".run/store",
    tracking: TrackingOption = None,
) -> None:
    """Compare the registry with the ledger. Exit code 65: a person must look at what was found."""
    from stillhouse.orchestration.operations import run_reconcile

    report = run_reconcile(model, store=store, tracking_uri=tracking, repair=repair, as_json=as_json)
    raise typer.Exit(report.exit_code)


@app.command()
def lineage(
    teacher: Annotated[str, typer.Argument(help="Name of a teacher, or a part of it, such as gpt-4o.")],
    store: Annotated[
        str | None, typer.Option(envvar="STILLHOUSE_STORE", help="Object store whose ledgers tell when.")
    ] = None,
    tracking: TrackingOption = None,
) -> None:
    """Say which registered versions contain output of a teacher."""
    from stillhouse.orchestration.lineage import show_lineage

    show_lineage(teacher, tracking_uri=tracking, store=store)


@app.command()
def reap() -> None:
    """Stop and remove containers of tasks that nobody waits for any more. For the runtime docker."""
    from stillhouse.orchestration.deployment import runtime_from_environment
    from stillhouse.orchestration.runtimes import DockerRuntime

    runtime = runtime_from_environment()
    if not isinstance(runtime, DockerRuntime):
        raise ConfigurationError(f"runtime {runtime.kind} has no containers to reap; this is for runtime docker")
    from stillhouse.orchestration.reaper import reap as reap_containers  # needs the client of the engine

    for reaped in reap_containers(runtime):
        typer.echo(str(reaped))


@app.command()
def doctor() -> None:
    """Check that this machine can run Stillhouse, and say what to do where it can't."""
    from stillhouse.orchestration.doctor import examine

    raise typer.Exit(examine())


@recipe_app.command("new")
def recipe_new(
    name: Annotated[str, typer.Argument(help="Lower-case words joined by dashes.")],
    folder: Annotated[Path, typer.Option(help="Where to write NAME.yaml.")] = Path("dags/recipes"),
) -> None:
    """Write a commented recipe to start from."""
    path = folder / f"{name}.yaml"
    text = new_recipe(name)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigurationError(f"{path} exists; choose another name or remove it") from None
    except FileNotFoundError:
        raise ConfigurationError(f"{folder} does not exist; create it or name another --folder") from None
    typer.echo(f"{path} written; edit it, then: stillhouse recipe check {path}")


@recipe_app.command("check")
def recipe_check(recipe: RecipeArgument, settings: SetOption = None) -> None:
    """Check a recipe, its policy and its files without running anything, and say what its teachers' terms are."""
    from stillhouse.orchestration.plan import plan
    from stillhouse.promotion.policy import load_policy
    from stillhouse.stages.catalog import CATALOG
    from stillhouse.stages.permit import judge_teachers
    from stillhouse.store import fingerprint_source
    from stillhouse.teacher.terms import describe

    loaded = load_recipe(find_recipe(recipe), _overrides(settings))
    load_policy(Path(loaded.gate.policy))
    for stage in dict.fromkeys(task.stage for task in plan(loaded)):
        for source in CATALOG[stage].sources(loaded).values():
            fingerprint_source(source)
    typer.echo(f"{loaded.name}: a valid recipe for {loaded.task}; {len(loaded.data.suites())} suites judge its student")
    for finding in judge_teachers(loaded, candidates=True).findings:
        mark, colour = ("✓", "green") if finding.permitted else ("✗ NOT PERMITTED:", "red")
        typer.echo(f"{typer.style(mark, fg=colour)} {describe(finding)}")


@recipe_app.command("schema")
def recipe_schema() -> None:
    """Print the JSON schema of recipes, for editors."""
    sys.stdout.buffer.write(pretty_json(Recipe.model_json_schema()))


def find_recipe(name: str) -> Path:
    """Return the path of a recipe given by path, or by name from ``dags/recipes``.

    Raises:
        ConfigurationError: There is none.
    """
    shipped = Path("dags/recipes")
    candidates = [Path(name), shipped / f"{name}.yaml"]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    known = ", ".join(sorted(path.stem for path in shipped.glob("*.yaml"))) or "none"
    raise ConfigurationError(f"no recipe '{name}': neither a file nor one of {shipped} ({known})")


def _overrides(settings: list[str] | None) -> dict[str, Any]:
    overrides = {}
    for setting in settings or []:
        field, sign, value = setting.partition("=")
        if not sign:
            raise ConfigurationError(f"--set {field}: write FIELD=VALUE, such as distillation.alpha=0.3")
        overrides[field] = yaml.safe_load(value)
    return overrides


def _read_request(name: str, uri: str) -> StageRequest:
    try:
        store, key = locate(uri if "://" in uri else f"file://{Path(uri).resolve()}")
        request = StageRequest.model_validate_json(store.get(key))
    except FileNotFoundError:
        raise ConfigurationError(f"request {uri}: no such object") from None
    except ValidationError as error:
        raise ConfigurationError(f"request {uri}: {explain(error)}") from None
    if request.stage != name:
        raise ConfigurationError(f"request {uri} is for stage '{request.stage}', not '{name}'")
    return request


def main() -> None:
    """Run the command line: one clear line for every foreseen failure, and its exit code."""
    be_quiet()
    logging.basicConfig(format="%(asctime)s %(levelname)-7s %(name)s: %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("stillhouse").setLevel(logging.INFO)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # what it retries, we explain when it gives up
    try:
        app()
    except SystemExit as end:
        if end.code == ExitCode.INTERRUPTED:
            typer.secho("stillhouse: interrupted; run again to go on from what is done", fg="red", err=True)
        raise
    except Exception as error:
        code = exit_code_of(error)
        if code == ExitCode.BUG:
            logger.exception("unexpected error: a defect in Stillhouse")
        else:
            typer.secho(f"stillhouse: {error}", fg="red", err=True)
        raise SystemExit(int(code)) from None


if __name__ == "__main__":
    main()
