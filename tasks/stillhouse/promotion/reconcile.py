"""The registry against the ledger: what differs, what a killed process left half done, and what can be put right."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Literal

from pydantic import AwareDatetime, Field

from stillhouse.contract import Conflict, ExitCode, IntegrityError
from stillhouse.promotion.aliases import ENTRY_TAG, SEQUENCE_TAG, finish_open, follow_ledger, wanted_aliases
from stillhouse.promotion.ledger import ActionEntry, History, Ledger, PromotionEntry
from stillhouse.promotion.registry import Registry
from stillhouse.recipe import Config

Status = Literal["consistent", "repaired", "inconsistent", "damaged"]

_TURNS = 10


class Finding(Config):
    """Something that is not as the ledger says."""

    kind: Literal["ledger-damaged", "half-done", "champion-moved", "previous-moved", "version-gone"]
    """``champion-moved``: by somebody outside Stillhouse. Only people know why, so it is not moved back."""
    detail: str
    """What was found, and what to do or what was done, in one line."""
    repaired: bool


class ReconcileReport(Config):
    """What a comparison of ledger and registry found."""

    schema_id: Literal["stillhouse/reconcile/1"] = "stillhouse/reconcile/1"
    model: str
    """Name of the registered model."""
    checked_at: AwareDatetime
    status: Status
    """``repaired``: all findings were. ``inconsistent``: some were not. ``damaged``: the ledger; nothing was moved."""
    champion: int | None
    """Version behind the alias ``champion`` afterwards; None if there is none."""
    ledger_entries: int = Field(ge=0)
    """Entries of the ledger afterwards; 0 if it can't be read."""
    findings: tuple[Finding, ...]

    @property
    def exit_code(self) -> ExitCode:
        """OK unless something is left that a person must look at."""
        return ExitCode.OK if self.status in ("consistent", "repaired") else ExitCode.DATA


def reconcile(model: str, *, ledger: Ledger, registry: Registry, repair: bool) -> ReconcileReport:
    """Compare the registry with the ledger.

    An action without an outcome is brought to its end, or annulled if its model is gone or broken. The alias
    ``previous`` follows the ledger. That others moved ``champion`` is reported: it may be an emergency measure, and a
    rollback to either version settles it. With a damaged ledger nothing is moved.

    Args:
        model: Name of the registered model.
        ledger: Its ledger.
        registry: Where it is registered.
        repair: Put right what can be; otherwise report only.

    Raises:
        TryAgain: The registry or the store is away, or promotions keep coming.
    """
    try:
        findings = _compare(model, ledger, registry, repair)
        history = ledger.verify()
    except IntegrityError as error:
        damage = Finding(kind="ledger-damaged", detail=str(error), repaired=False)
        return _report(model, registry, "damaged", 0, (damage,))
    left = [finding for finding in findings if not finding.repaired]
    status: Status = "inconsistent" if left else "repaired" if findings else "consistent"
    return _report(model, registry, status, len(history.entries), findings)


def _compare(model: str, ledger: Ledger, registry: Registry, repair: bool) -> tuple[Finding, ...]:
    named = list(_named_entries(model, registry))  # first: a tag is set after its entry was written
    history = ledger.verify()
    _check_not_cut(model, history, named)
    findings = []
    if history.open is not None:
        findings.append(_half_done(model, history.open, ledger, registry, repair))
    if repair or history.open is None:
        findings += _moved(model, ledger, registry, repair)
    return tuple(findings)


def _named_entries(model: str, registry: Registry) -> Iterator[tuple[int, int, str]]:
    """Yield version, sequence and digest of the ledger entries that versions in use name in their tags."""
    for version in sorted(set(registry.aliases(model).values())):
        tags = registry.tags(model, version)
        if tags.get(SEQUENCE_TAG, "").isdecimal():
            yield version, int(tags[SEQUENCE_TAG]), tags.get(ENTRY_TAG, "")


def _check_not_cut(model: str, history: History, named: list[tuple[int, int, str]]) -> None:
    """Refuse a ledger that lacks an entry that a version names: a chain doesn't tell that its end was cut off."""
    for version, sequence, digest in named:
        entry = history.entries[sequence - 1] if 1 <= sequence <= len(history.entries) else None
        if entry is None or entry.digest != digest:
            raise IntegrityError(
                f"ledger of {model}: entry {sequence}, which version {version} names, is missing or was changed; "
                "restore it from a backup"
            )


def _half_done(model: str, entry: ActionEntry, ledger: Ledger, registry: Registry, repair: bool) -> Finding:
    what = f"ledger entry {entry.sequence} ({entry.action} of version {entry.registered_version}) has no outcome"
    if not repair:
        return Finding(kind="half-done", detail=f"{what}; run again with --repair", repaired=False)
    outcome = finish_open(model, ledger=ledger, registry=registry).outcomes[entry.sequence]
    end = "it was finished" if outcome.status == "done" else f"it was annulled: {outcome.detail}"
    return Finding(kind="half-done", detail=f"{what}; {end}", repaired=True)


def _moved(model: str, ledger: Ledger, registry: Registry, repair: bool) -> list[Finding]:
    """Compare the aliases; what is found counts only if the ledger stayed as it was meanwhile."""
    for _ in range(_TURNS):
        history = ledger.verify()
        if history.open is not None:
            return []  # somebody is at work, and moves the aliases next
        try:
            wanted = wanted_aliases(model, history, registry)
        except IntegrityError as error:
            findings = [Finding(kind="version-gone", detail=f"{error}; {_way_back(history)}", repaired=False)]
        else:
            findings = _differences(model, wanted, registry.aliases(model))
        if not findings or ledger.verify() == history:
            break
    else:
        raise Conflict(f"promotions of {model} keep coming; run again")
    if repair and [finding.kind for finding in findings] == ["previous-moved"]:
        follow_ledger(model, ledger=ledger, registry=registry)
        return [findings[0].model_copy(update={"repaired": True})]
    return findings


def _differences(model: str, wanted: Mapping[str, int | None], found: Mapping[str, int]) -> list[Finding]:
    """Return what is to say about the aliases: about ``previous`` only if ``champion`` is where it should be."""
    champion, before = wanted.get("champion"), wanted.get("previous")
    if wanted and found.get("champion") != champion:
        detail = (
            f"{model}@champion {_leads(found.get('champion'))}, and by the ledger it {_leads(champion)}; settle it "
            "with stillhouse rollback to either version, and say why"
        )
        return [Finding(kind="champion-moved", detail=detail, repaired=False)]
    if wanted and found.get("previous") != before:
        detail = f"{model}@previous {_leads(found.get('previous'))}, and by the ledger it {_leads(before)}"
        return [Finding(kind="previous-moved", detail=detail, repaired=False)]
    return []


def _leads(version: int | None) -> str:
    return "leads nowhere" if version is None else f"leads to version {version}"


def _way_back(history: History) -> str:
    """Say how a champion that is gone from the registry is registered again: by its promotion, from the store."""
    head = history.head
    runs = [
        entry.run_id
        for entry in history.actions
        if isinstance(entry, PromotionEntry) and head is not None and entry.artifact.sha256 == head.artifact.sha256
    ]
    return f"clear the task promote of run {runs[-1]} to register it again"


def _report(
    model: str, registry: Registry, status: Status, ledger_entries: int, findings: tuple[Finding, ...]
) -> ReconcileReport:
    return ReconcileReport(
        model=model,
        checked_at=datetime.now(UTC),
        status=status,
        champion=registry.aliases(model).get("champion"),
        ledger_entries=ledger_entries,
        findings=findings,
    )
