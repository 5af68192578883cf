"""Promotion and rollback killed between any two calls of store and registry, then run again: nothing is left half done.

Ends are counted, not listed: whatever calls the code makes, each is once the one that never happens.
"""

import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from promotions import Countdown, FileRegistry, Killed, Mortal, approved

from stillhouse.promotion import Ledger
from stillhouse.promotion.promote import promote_model
from stillhouse.promotion.reconcile import reconcile
from stillhouse.promotion.rollback import roll_back
from stillhouse.store import FileStore


@dataclass(frozen=True, kw_only=True)
class World:
    """A store and a registry, once as they are and once with an end in sight."""

    folder: Path

    def parts(self, countdown: Countdown | None = None) -> dict[str, Any]:
        store, registry = FileStore(self.folder), FileRegistry(self.folder)
        if countdown is not None:
            store, registry = Mortal(store, countdown), Mortal(registry, countdown)
        return {"ledger": Ledger(store, "toy"), "registry": registry}

    def promote(self, name: str, **parts: Any) -> None:
        parts = parts or self.parts()
        promote_model(approved("toy", name, parts["ledger"]), **parts)

    @property
    def registry(self) -> FileRegistry:
        return self.parts()["registry"]

    def state(self) -> dict[str, Any]:
        """What counts afterwards, without moments and digests."""
        history = self.parts()["ledger"].verify()
        return {
            "entries": [(entry.action, getattr(entry, "status", "")) for entry in history.entries],
            "actions": [(entry.registered_version, entry.champion_before) for entry in history.actions],
            "aliases": self.registry.aliases("toy"),
            "sequence": self.registry.tags("toy", 2)["stillhouse.ledger_sequence"],
        }


def prepared(folder: Path) -> World:
    """Return a world with two promotions in its past, made once for all worlds beside it."""
    template = folder.parent / "template"
    if not template.exists():
        for name in ("first", "second"):
            World(folder=template).promote(name)
    shutil.copytree(template, folder)
    return World(folder=folder)


def promotion(world: World) -> Callable[..., None]:
    request = approved("toy", "third", world.parts()["ledger"])
    return lambda **parts: promote_model(request, **parts)


def rollback(world: World) -> Callable[..., None]:
    return lambda **parts: roll_back("toy", **parts, reason="wrong on Mondays", who="ada")


def named_rollback(world: World) -> Callable[..., None]:
    return lambda **parts: roll_back("toy", **parts, target=1, reason="wrong on Mondays", who="ada")


ACTIONS = pytest.mark.parametrize("action", [promotion, rollback, named_rollback])


def every_end(tmp_path: Path, action: Callable[[World], Callable[..., None]]) -> int:
    """Return how many calls the action makes when nobody ends it."""
    world = prepared(tmp_path / "whole")
    act, countdown = action(world), Countdown(None)
    act(**world.parts(countdown))
    assert countdown.calls > 15
    return countdown.calls


def killed_at(call: int, world: World, act: Callable[..., None]) -> None:
    with pytest.raises(Killed):
        act(**world.parts(Countdown(call)))


@ACTIONS
def test_run_again_it_ends_as_if_it_was_never_killed(tmp_path: Path, action: Callable[[World], Any]) -> None:
    calls = every_end(tmp_path, action)
    whole = World(folder=tmp_path / "whole").state()
    for call in range(calls):
        world = prepared(tmp_path / str(call))
        act = action(world)
        killed_at(call, world, act)
        act(**world.parts())
        assert world.state() == whole, f"killed before call {call}"
        act(**world.parts())
        assert world.state() == whole, f"killed before call {call}, then run twice"


@ACTIONS
def test_killed_twice_it_still_ends_well(tmp_path: Path, action: Callable[[World], Any]) -> None:
    calls = every_end(tmp_path, action)
    whole = World(folder=tmp_path / "whole").state()
    for call in range(0, calls, 3):
        world = prepared(tmp_path / str(call))
        act = action(world)
        killed_at(call, world, act)
        act_again = Countdown(calls - call)
        try:
            act(**world.parts(act_again))
        except Killed:
            act(**world.parts())
        assert world.state() == whole, f"killed before call {call}, then {calls - call} later"


@ACTIONS
def test_reconciliation_finishes_what_nobody_runs_again(tmp_path: Path, action: Callable[[World], Any]) -> None:
    calls = every_end(tmp_path, action)
    whole = World(folder=tmp_path / "whole").state()
    ends = set()
    for call in range(calls):
        world = prepared(tmp_path / str(call))
        act = action(world)
        before = world.state()
        killed_at(call, world, act)
        report = reconcile("toy", **world.parts(), repair=True)
        ends.add(report.status)
        assert reconcile("toy", **world.parts(), repair=False).status == "consistent"
        after = world.state()
        after["aliases"].pop("candidate"), before["aliases"].pop("candidate")
        finished = whole | {"aliases": {**whole["aliases"]}}
        finished["aliases"].pop("candidate")
        assert after in (before, finished), f"killed before call {call}"
    assert ends == {"consistent", "repaired"}


@ACTIONS
def test_the_next_promotion_finishes_it_first(tmp_path: Path, action: Callable[[World], Any]) -> None:
    calls = every_end(tmp_path, action)
    for call in range(0, calls, 2):
        world = prepared(tmp_path / str(call))
        act = action(world)
        killed_at(call, world, act)
        world.promote("fourth")
        history = world.parts()["ledger"].verify()
        assert history.open is None
        assert {outcome.status for outcome in history.outcomes.values()} == {"done"}
        version = world.registry.find("toy", history.head.artifact.sha256)
        assert history.head.run_id == "run-fourth"
        assert world.registry.aliases("toy")["champion"] == version


def test_a_reconciliation_killed_anywhere_is_finished_by_the_next(tmp_path: Path) -> None:
    calls = every_end(tmp_path, promotion)
    for call in range(5, 200, 2):
        world = prepared(tmp_path / f"r{call}")
        act = promotion(world)
        killed_at(calls - 3, world, act)
        try:
            reconcile("toy", **world.parts(Countdown(call)), repair=True)
        except Killed:
            assert reconcile("toy", **world.parts(), repair=True).exit_code == 0
        else:
            break
        assert reconcile("toy", **world.parts(), repair=False).status == "consistent"
    else:
        pytest.fail("a reconciliation makes fewer calls than that")


PROCESS = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = {path!r}
from promotions import Countdown
from promotion_killed import {action} as action, prepared

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def in_process(work):
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

root = Path({folder!r})
whole = prepared(root / "whole")
action(whole)(**whole.parts())
call = 0
while True:
    world = prepared(root / str(call))
    act = action(world)
    code = in_process(lambda: act(**world.parts(Countdown(call, die))))
    if code == 0:
        break
    assert code == -signal.SIGKILL, code
    assert in_process(lambda: act(**world.parts())) == 0, call
    assert world.state() == whole.state(), call
    call += 3
print(call)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("action", ["promotion", "rollback"])
def test_real_processes_killed_at_every_call(tmp_path: Path, action: str) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "promotion_killed.py").symlink_to(Path(__file__))
    path = [str(tmp_path / "code"), str(Path(__file__).parents[1])]
    code = textwrap.dedent(PROCESS).format(path=path, folder=str(tmp_path / "worlds"), action=action)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 15
