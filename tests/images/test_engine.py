"""``infra/engine.sh`` in network and mounts of its own, where no other engine can be in its way."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine import ROOT

pytestmark = [
    pytest.mark.docker,
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("dockerd") is None, reason="only root can start Docker, and only if installed"
    ),
]

WHAT_IT_CHANGES = """
look() { iptables-save | grep -v '^#' | sed 's/ \\[.*//'; ip -o link | cut -d: -f2; sysctl -n net.ipv4.ip_forward; }
ip link set lo up
iptables -A INPUT -s 192.0.2.1 -j DROP
iptables -t nat -A POSTROUTING -s 192.0.2.1 -j ACCEPT
sysctl -q -w net.ipv4.ip_forward=0
look >before
infra=$1; state=$STILLHOUSE_ENGINE
$infra/engine.sh start
docker --host unix://$state/docker.sock network create other >/dev/null
look >during
"""
AND_ITS_END = """
$infra/engine.sh stop
look >after
grep -c " $state/" /proc/mounts >mounts
"""
LOST = "process=$(cat $state/dockerd.pid); kill -KILL $process; while kill -0 $process; do sleep 0.1; done 2>/dev/null"


@pytest.fixture
def short_path() -> Iterator[Path]:
    """Return a folder for sockets, whose paths must not be long."""
    with tempfile.TemporaryDirectory(prefix="engine-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.mark.parametrize("lost", ["", LOST], ids=["stopped", "lost, then stopped"])
def test_an_engine_leaves_nothing_behind(lost: str, tmp_path: Path, short_path: Path) -> None:
    state = short_path / "engine"
    environment = {k: v for k, v in os.environ.items() if k != "DOCKER_HOST"} | {"STILLHOUSE_ENGINE": str(state)}
    script = WHAT_IT_CHANGES + lost + AND_ITS_END
    done = subprocess.run(
        ["unshare", "--net", "--mount", "bash", "-c", script, "bash", str(ROOT / "infra")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == f"DOCKER_HOST=unix://{state}/docker.sock", done.stderr
    before, during, after = ((tmp_path / name).read_text() for name in ("before", "during", "after"))
    assert "docker0" in during
    assert after == before
    assert (tmp_path / "mounts").read_text() == "0\n"
    assert {path.name for path in state.iterdir()} == {"data", "dockerd.log"}
