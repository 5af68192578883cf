"""Takes the README's screenshots of a finished quickstart whose servers are up: ``make screenshots``.

A headless Chromium is driven over its DevTools protocol. It is found on the PATH as ``chromium`` or ``google-chrome``,
or named by the environment variable ``CHROMIUM``.
"""

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from websockets.sync.client import ClientConnection, connect

from stillhouse.orchestration.describe import mlflow_workflow_url
from stillhouse.orchestration.quickstart.servers import running_servers
from stillhouse.orchestration.quickstart.settings import USER, RunFolder

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "infra" / "images"
SECONDS_TO_SHOW = 60.0
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions"),
)


@dataclass(frozen=True, kw_only=True)
class Shot:
    """One page and when it is ready to be looked at."""

    name: str
    url: str
    steps: tuple[tuple[str, str], ...]
    """In turn: JavaScript to wait for until it is true, and JavaScript that finds an element to click then, if any."""
    width: int = 1440
    height: int = 900


class Page:
    """One tab of the browser."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._sent = 0

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol and return its result."""
        self._sent += 1
        self._socket.send(json.dumps({"id": self._sent, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._socket.recv())
            if answer.get("id") == self._sent:
                return dict(answer.get("result", {}))

    def wait_for(self, expression: str, what: str) -> None:
        """Wait until a JavaScript expression is true."""
        deadline = time.monotonic() + SECONDS_TO_SHOW
        while not self.evaluate(f"Boolean({expression})"):
            if time.monotonic() > deadline:
                raise SystemExit(f"{what} did not show in {SECONDS_TO_SHOW:.0f} s")
            time.sleep(0.25)

    def click(self, element: str) -> None:
        """Click in the middle of the element that JavaScript finds, as a mouse does."""
        middle = "(e => { const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })"
        x, y = self.evaluate(f"{middle}({element})")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True).get("result", {}).get("value")


def main() -> None:
    """Take all screenshots."""
    folder = RunFolder(root=ROOT / ".run")
    servers = running_servers(folder)
    if servers is None:
        raise SystemExit("no quickstart is up; start one with: make run")
    answer = httpx.post(
        f"{servers.airflow_url}/auth/token", json={"username": USER, "password": folder.password()}, timeout=30
    )
    token = answer.raise_for_status().json()["access_token"]
    recipe = sys.argv[1] if len(sys.argv) > 1 else "quickstart"
    IMAGES.mkdir(exist_ok=True)
    with browser() as page:
        page.call("Network.setCookie", name="_token", value=token, url=servers.airflow_url)
        for shot in shots(
            servers.airflow_url, servers.mlflow_url, recipe, last_run(servers.airflow_url, token, recipe)
        ):
            take(page, shot)
            sys.stdout.write(f"infra/images/{shot.name}.png\n")


def shots(airflow: str, mlflow: str, recipe: str, run_id: str) -> list[Shot]:
    """Return the pages of one run of a recipe."""
    return [
        Shot(
            name="airflow-graph",
            url=f"{airflow}/dags/{recipe}/runs/{run_id}",
            steps=(
                (button("label.startsWith('Show Graph')"), button("label.startsWith('Show Graph')")),
                ("document.querySelectorAll('.react-flow__node').length > 8", ""),
            ),
            width=1600,
            height=560,
        ),
        Shot(
            name="airflow-trigger",
            url=f"{airflow}/dags/{recipe}",
            steps=(
                (button("label === 'Trigger Dag'"), button("label === 'Trigger Dag'")),
                (button("text === 'Distillation'"), button("text === 'Distillation'")),
                ("document.body.innerText.includes('Temperature')", ""),
            ),
            height=1150,
        ),
        Shot(
            name="mlflow-runs",
            url=mlflow_workflow_url(mlflow, recipe),
            steps=(("document.body.innerText.includes('Run Name')", ""),),
        ),
    ]


def button(condition: str) -> str:
    """Return JavaScript that finds the first button whose ``label`` or ``text`` meets a condition."""
    facts = "const label = b.getAttribute('aria-label') || '', text = b.innerText.trim();"
    return f"[...document.querySelectorAll('button')].find(b => {{ {facts} return {condition}; }})"


def last_run(airflow: str, token: str, recipe: str) -> str:
    """Return the id of the recipe's newest run."""
    answer = httpx.get(
        f"{airflow}/api/v2/dags/{recipe}/dagRuns",
        params={"order_by": "-run_after", "limit": 1},
        headers={"Authorization": f"Bearer {token}"},
        timeout=30,
    )
    return str(answer.raise_for_status().json()["dag_runs"][0]["dag_run_id"])


def take(page: Page, shot: Shot) -> None:
    """Open a page, wait until it shows what it should, and keep its picture."""
    page.call(
        "Emulation.setDeviceMetricsOverride", width=shot.width, height=shot.height, deviceScaleFactor=1, mobile=False
    )
    page.call("Page.navigate", url=shot.url)
    for wanted, element in shot.steps:
        page.wait_for(wanted, f"{shot.name}: {wanted}")
        if element:
            page.click(element)
    time.sleep(3)  # layouts of graphs and tables move for a moment after their parts are there
    picture = page.call("Page.captureScreenshot", format="png")["data"]
    (IMAGES / f"{shot.name}.png").write_bytes(base64.b64decode(picture))


@contextmanager
def browser() -> Iterator[Page]:
    """Run a browser with an empty profile and yield its one tab."""
    program = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        raise SystemExit("no Chromium found; install one (Debian: apt-get install chromium) or set CHROMIUM")
    with tempfile.TemporaryDirectory() as profile:
        process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={profile}", "--remote-debugging-port=0", "about:blank"],
            stderr=subprocess.DEVNULL,
        )
        try:
            with connect(tab_address(Path(profile)), max_size=None) as socket:
                page = Page(socket)
                page.call("Page.enable")
                page.call("Network.enable")
                yield page
        finally:
            process.terminate()
            process.wait()


def tab_address(profile: Path) -> str:
    """Return the address of the first tab, once the browser has written its port into the profile."""
    port_file = profile / "DevToolsActivePort"
    deadline = time.monotonic() + SECONDS_TO_SHOW
    while time.monotonic() < deadline:
        if port_file.exists() and (lines := port_file.read_text().splitlines()):
            tabs = httpx.get(f"http://127.0.0.1:{lines[0]}/json/list", timeout=10).json()
            for tab in tabs:
                if tab["type"] == "page":
                    return str(tab["webSocketDebuggerUrl"])
        time.sleep(0.1)
    raise SystemExit("the browser did not start")


if __name__ == "__main__":
    main()
