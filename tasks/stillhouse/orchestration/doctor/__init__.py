"""``stillhouse doctor``: can Stillhouse run here, on the servers that the deployment names, and if not, what helps."""

import os
from collections.abc import Iterator, Mapping

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from stillhouse.contract import ConfigurationError, ExitCode
from stillhouse.orchestration.deployment import DEPLOYMENT_FILE, Deployment
from stillhouse.orchestration.doctor.finding import Finding
from stillhouse.orchestration.doctor.machine import examine_machine
from stillhouse.orchestration.runtimes import DockerRuntime, LocalRuntime, PodRuntime

__all__ = ["Finding", "examine", "findings"]


def examine(environment: Mapping[str, str] = os.environ) -> ExitCode:
    """Look at this machine and at every server of the deployment, print each finding, and say whether all is well."""
    console = Console()
    code = ExitCode.OK
    table = Table("", "", "", "", box=None, show_header=False, padding=(0, 1))
    for finding in findings(environment):
        if not finding.remedy:
            mark = "[green]✓"
        elif finding.grave:
            mark, code = "[red]✗", ExitCode.CONFIGURATION
        else:
            mark = "[yellow]!"
        table.add_row(mark, finding.subject, escape(finding.found), escape(finding.remedy))
    console.print(table)
    return code


def findings(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Look at everything, in the order in which it is needed."""
    if not environment.get(DEPLOYMENT_FILE) and not environment.get("STILLHOUSE_STORE"):
        yield from examine_machine(LocalRuntime())
        yield Finding(subject="deployment", found="none named: enough for stillhouse run and stillhouse quickstart")
        return
    try:
        deployment = Deployment.from_environment(environment)
    except ConfigurationError as error:
        yield from examine_machine(LocalRuntime())
        yield Finding(subject="deployment", found="unfit", remedy=str(error))
        return
    yield from examine_machine(deployment.runtime)
    yield Finding(subject="deployment", found=f"runtime {deployment.runtime.kind}")
    yield from _servers(deployment)


def _servers(deployment: Deployment) -> Iterator[Finding]:
    # Clients of servers take a second to import, and are needed only here.
    from stillhouse.orchestration.doctor.servers import examine_mlflow, examine_store

    yield from examine_store(deployment.store)
    yield from examine_mlflow(deployment.tracking_uri)
    if isinstance(deployment.runtime, DockerRuntime):
        from stillhouse.orchestration.doctor.engine import examine_engine

        yield from examine_engine(deployment.runtime)
    if isinstance(deployment.runtime, PodRuntime):
        from stillhouse.orchestration.doctor.cluster import examine_cluster

        yield from examine_cluster(deployment.runtime)
