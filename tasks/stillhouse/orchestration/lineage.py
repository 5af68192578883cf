"""Which registered versions contain output of a teacher, at the terminal."""

from rich.markup import escape
from rich.table import Table

from stillhouse.contract import ConfigurationError
from stillhouse.orchestration.outcome import result_console
from stillhouse.promotion.ledger import Ledger, PromotionEntry
from stillhouse.promotion.lineage import TaughtVersion, taught_by
from stillhouse.promotion.registry import Registry
from stillhouse.store import open_store


def show_lineage(text: str, *, tracking_uri: str | None, store: str | None = None) -> list[TaughtVersion]:
    """Print and return the registered versions that contain output of a teacher whose name contains ``text``.

    Args:
        text: Part of the teacher's name; case does not count.
        tracking_uri: The MLflow server.
        store: Object store with the ledgers, which tell when a version was promoted; None leaves that out.

    Raises:
        ConfigurationError: There is no server, or nothing to look for.
        IntegrityError: What is recorded of a version can't be read, or a ledger was changed.
    """
    if not text.strip():
        raise ConfigurationError("name a teacher, or a part of its name, such as gpt-4o")
    if not tracking_uri:
        raise ConfigurationError("name the MLflow server: --tracking, or MLFLOW_TRACKING_URI in the environment")
    found = list(taught_by(text.strip(), Registry(tracking_uri)))
    console = result_console()
    if not found:
        console.print(f"no registered version at {tracking_uri} contains output of a teacher like '{escape(text)}'")
        return found
    promoted = _promotions(store, {version.model for version in found}) if store else {}
    table = Table("model", "version", "aliases", "promoted", "run", "teachers")
    for version in found:
        table.add_row(
            version.model,
            str(version.version),
            ", ".join(version.aliases),
            promoted.get((version.model, version.version), ""),
            escape(version.run_id),
            escape("\n".join(f"{teacher.teacher} ({teacher.licence})" for teacher in version.teachers)),
        )
    console.print(table)
    return found


def _promotions(store: str, models: set[str]) -> dict[tuple[str, int], str]:
    """Return the day of each version's newest promotion, as the ledgers tell it."""
    opened = open_store(store)
    return {
        (model, entry.registered_version): entry.at.date().isoformat()
        for model in models
        for entry in Ledger(opened, model).verify().actions
        if isinstance(entry, PromotionEntry)
    }
