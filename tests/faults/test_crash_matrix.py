"""Every task of a workflow on a bucket is killed at a random write and started again: nothing is lost or done twice."""

from pathlib import Path

import pytest
from crash_matrix import TAKES_MINUTES, Local, markdown, random_moments, tiny_matrix
from tiny_bucket import digests_of

from stillhouse.promotion import Ledger
from stillhouse.promotion.registry import Registry
from stillhouse.store import open_store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3 * TAKES_MINUTES)]


@pytest.mark.parametrize("runtime", ["local"])
def test_killed_tasks_end_as_if_they_never_were(runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tiny_matrix(tmp_path, monkeypatch.setenv) as (matrix, expected):
        runtimes = {"local": Local(work=tmp_path / "work", log=tmp_path / "log")}
        rows = list(matrix.run(runtimes[runtime], random_moments(seed=1)))
        table = markdown(rows)
        assert all(row.exits[-1] == 0 for row in rows), table + (tmp_path / "log").read_text()[-3000:]
        assert sum(row.exits[0] == -9 for row in rows) > len(rows) / 2, table
        assert digests_of(matrix.results) == expected, table
        ledger = Ledger(open_store(matrix.deployment.store), "tiny-student").verify()
        assert [entry.action for entry in ledger.entries] == ["promote", "outcome"], table
        assert Registry(str(matrix.deployment.tracking_uri)).aliases("tiny-student")["champion"] == 1, table
