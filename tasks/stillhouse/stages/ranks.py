"""Several processes that do one stage together, started by ``torchrun``: the first one leads, the others follow.

The leader does everything that one process does. A follower does the stage's own work beside it, since gradients are
averaged over all, and leaves no trace: no output, no record, no run in MLflow.
"""

import importlib
import os
import sys
from pathlib import Path

from stillhouse.contract import ConfigurationError, StageRequest
from stillhouse.stages.catalog import CATALOG, find_reusable, key_of
from stillhouse.stages.context import StageContext


def check_processes(request: StageRequest) -> None:
    """Compare how many processes there are with how many the recipe wants: the result depends on their number.

    Raises:
        ConfigurationError: There are more or fewer.
    """
    wanted = request.parsed_recipe().resources.of(request.stage).world_size
    found = int(os.environ.get("WORLD_SIZE", "1"))
    if found != wanted:
        how = f"torchrun --nproc-per-node {wanted}" if wanted > 1 else "no torchrun"
        raise ConfigurationError(
            f"stage {request.stage} runs in {wanted} processes (resources), not in {found}; start it with {how}"
        )


def follows() -> bool:
    """Tell whether this process follows another one."""
    return int(os.environ.get("RANK", "0")) > 0


def accelerators() -> int:
    """Return how many accelerators this process and those on other nodes see; none where torch was not needed."""
    torch = sys.modules.get("torch")
    if torch is None:
        return 0
    nodes = int(os.environ.get("WORLD_SIZE", "1")) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    count: int = torch.accelerator.device_count()
    return count * nodes


def follow_stage(request: StageRequest, *, work: Path) -> None:
    """Do a follower's part of the stage; return at once where its result exists already.

    Args:
        request: The same as the leader's.
        work: The same folder as the leader's: checkpoints are read by all.

    Raises:
        StillhouseError: See the stage.
    """
    key = key_of(request)
    if find_reusable(request, key) is not None:
        return
    workspace = work / request.stage / key
    workspace.mkdir(parents=True, exist_ok=True)
    importlib.import_module(CATALOG[request.stage].module).run(
        StageContext.of(
            request,
            key,
            workspace,
            mlflow_run_id=None,
            report_progress=lambda progress: None,
            report_point=lambda point: None,
            leads=False,
        )
    )
