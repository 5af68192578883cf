"""Promotions without servers or models: a registry in a file, approved requests, and processes that end anywhere."""

import fcntl
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stillhouse.contract import Artifact, ConfigurationError, Decision, IntegrityError, sha256_of
from stillhouse.promotion import Approval, Ledger
from stillhouse.promotion.promote import PromotionRequest
from stillhouse.promotion.registry import DIGEST_TAG


class FileRegistry:
    """Behaves as `stillhouse.promotion.registry.Registry`, for any number of threads and processes, in one file."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "registry.json"

    @contextmanager
    def _state(self, model: str) -> Iterator[dict[str, Any]]:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.with_suffix(".lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            before = self._file.read_text() if self._file.exists() else "{}"
            state = json.loads(before)
            yield state.setdefault(model, {"versions": {}, "aliases": {}, "broken": [], "next": 1})
            if (after := json.dumps(state)) != before:
                self._file.write_text(after)

    def register(
        self,
        model: str,
        folder: Path,
        artifact: Artifact,
        tags: Mapping[str, str],
        *,
        mlflow_run_id: str,
        card: str | None = None,
    ) -> int:
        with self._state(model) as state:
            found = _find(state, artifact.sha256)
            if found is None:
                found, state["next"] = state["next"], state["next"] + 1
                state["versions"][str(found)] = {**tags, DIGEST_TAG: artifact.sha256}
            return found

    def find(self, model: str, sha256: str) -> int | None:
        with self._state(model) as state:
            return _find(state, sha256)

    def tags(self, model: str, version: int) -> dict[str, str]:
        with self._state(model) as state:
            if str(version) not in state["versions"]:
                raise ConfigurationError(f"models:/{model}/{version} does not exist")
            return dict(state["versions"][str(version)])

    def create_model(self, model: str) -> None:
        with self._state(model):
            pass

    def aliases(self, model: str) -> dict[str, int]:
        with self._state(model) as state:
            return dict(state["aliases"])

    def set_alias(self, model: str, alias: str, version: int) -> None:
        with self._state(model) as state:
            assert str(version) in state["versions"]
            state["aliases"][alias] = version

    def delete_alias(self, model: str, alias: str) -> None:
        with self._state(model) as state:
            state["aliases"].pop(alias, None)

    def set_tags(self, model: str, version: int, tags: Mapping[str, str]) -> None:
        with self._state(model) as state:
            state["versions"][str(version)].update(tags)

    def load_back(self, model: str, version: int, sha256: str) -> None:
        with self._state(model) as state:
            if version in state["broken"] or state["versions"][str(version)][DIGEST_TAG] != sha256:
                raise IntegrityError(f"models:/{model}/{version} does not load back")

    def break_version(self, model: str, version: int) -> None:
        with self._state(model) as state:
            state["broken"].append(version)

    def delete_version(self, model: str, version: int) -> None:
        with self._state(model) as state:
            del state["versions"][str(version)]
            state["aliases"] = {alias: to for alias, to in state["aliases"].items() if to != version}


def _find(state: Mapping[str, Any], sha256: str) -> int | None:
    return min((int(v) for v, tags in state["versions"].items() if tags[DIGEST_TAG] == sha256), default=None)


class Killed(BaseException):
    """Stands for the end of the process."""


def killed() -> None:
    raise Killed


class Countdown:
    """Ends the process at one boundary between two calls of the outside world."""

    def __init__(self, calls: int | None, end: Callable[[], None] = killed) -> None:
        self._left = calls
        self._end = end
        self.calls = 0

    def tick(self) -> None:
        self.calls += 1
        if self.calls - 1 == self._left:
            self._end()


class Mortal:
    """A store or a registry whose user may end before any call."""

    def __init__(self, wrapped: object, countdown: Countdown) -> None:
        self._wrapped = wrapped
        self._countdown = countdown

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._wrapped, name)
        if not callable(found):
            return found

        def call(*args: object, **kwargs: object) -> object:
            self._countdown.tick()
            return found(*args, **kwargs)

        return call


def approved(model: str, name: str, ledger: Ledger, **changes: Any) -> PromotionRequest:
    """Return the request to promote a made-up model that was judged against today's champion, and approved."""
    sha256 = sha256_of(name.encode())
    head = ledger.head()
    champion = head.artifact.sha256 if head and head.artifact.sha256 != sha256 else None
    fields = {
        "verdict": "promote",
        "candidate": "kd",
        "model_sha256": sha256,
        "champion_sha256": champion,
        "policy": "strict",
        "policy_sha256": "1" * 64,
        "evidence_sha256": "2" * 64,
        "rules": (),
    }
    decision = Decision.model_validate(fields | changes)
    return PromotionRequest(
        model=model,
        artifact=Artifact(uri=f"file:///models/{name}", sha256=sha256, num_bytes=1, kind="tree"),
        folder=Path("/nowhere"),
        decision=decision,
        approval=Approval(mode="auto", who="toy", when=datetime.now(UTC), decision_sha256=decision.digest),
        run_id=f"run-{name}",
        mlflow_run_id="0",
        tags={},
    )
