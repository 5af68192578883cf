"""Rollback and reconciliation at the terminal: from a deployment's addresses to what happened, in words."""

import sys

from rich.console import Console

from stillhouse.contract import ConfigurationError, pretty_json
from stillhouse.orchestration.outcome import LOG_WIDTH
from stillhouse.promotion.ledger import Ledger
from stillhouse.promotion.reconcile import ReconcileReport, reconcile
from stillhouse.promotion.registry import Registry
from stillhouse.promotion.rollback import Rollback, roll_back
from stillhouse.promotion.signing import SigningKeys
from stillhouse.recipe.base import NAME_PATTERN
from stillhouse.store import open_store

_COLOURS = {"consistent": "green", "repaired": "yellow", "inconsistent": "red", "damaged": "red"}


def run_rollback(
    model: str, *, store: str, tracking_uri: str | None, target: int | None, reason: str, who: str
) -> Rollback:
    """Roll a registered model back and say what that did; see `stillhouse.promotion.rollback.roll_back`.

    Args:
        model: Name of the registered model.
        store: Root URI, or folder, of the object store that has its ledger.
        tracking_uri: The MLflow server.
        target: Version to go back to; None for the champion before today's.
        reason: Why.
        who: Who asks for it.
    """
    ledger, registry = _places(model, store, tracking_uri)
    done = roll_back(model, ledger=ledger, registry=registry, target=target, reason=reason, who=who)
    before = f"version {done.champion_before}" if done.champion_before else "none"
    console = _console()
    console.print(
        f"[bold green]models:/{model}@champion[/] is version {done.version}"
        + (" already: the same rollback was asked for before" if done.already_done else f"; it was {before}")
    )
    console.print(f"ledger entry {done.ledger_sequence}, by {done.who}: {done.reason}", markup=False)
    return done


def run_reconcile(model: str, *, store: str, tracking_uri: str | None, repair: bool, as_json: bool) -> ReconcileReport:
    """Compare registry and ledger and say what was found; see `stillhouse.promotion.reconcile.reconcile`.

    Args:
        model: Name of the registered model.
        store: Root URI, or folder, of the object store that has its ledger.
        tracking_uri: The MLflow server.
        repair: Put right what can be.
        as_json: Print the report itself.
    """
    ledger, registry = _places(model, store, tracking_uri)
    report = reconcile(model, ledger=ledger, registry=registry, repair=repair)
    if as_json:
        sys.stdout.write(pretty_json(report).decode())
        return report
    console = _console()
    champion = f"version {report.champion}" if report.champion else "none"
    console.print(
        f"[bold {_COLOURS[report.status]}]{report.status}[/] models:/{model}@champion: {champion}; "
        f"{report.ledger_entries} ledger entries"
    )
    for finding in report.findings:
        mark = "[yellow]repaired[/]" if finding.repaired else "[red]open[/]    "
        console.print(f"  {mark} {finding.kind}: ", end="")
        console.print(finding.detail, markup=False)
    return report


def _places(model: str, store: str, tracking_uri: str | None) -> tuple[Ledger, Registry]:
    if not NAME_PATTERN.match(model):
        raise ConfigurationError(f"model {model!a}: write lower-case words joined by dashes, as in the recipe")
    if not tracking_uri:
        raise ConfigurationError("name the MLflow server: --tracking, or MLFLOW_TRACKING_URI in the environment")
    return Ledger(open_store(store), model), Registry(tracking_uri, SigningKeys.from_environment())


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=LOG_WIDTH, soft_wrap=True)
