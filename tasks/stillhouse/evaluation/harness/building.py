"""Building tasks of the lm-evaluation-harness: which items they have is settled before any model is asked."""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

from stillhouse.contract import ConfigurationError, TryAgain
from stillhouse.evaluation.blocks import SuiteInfo
from stillhouse.evaluation.harness.folder import read_tasks
from stillhouse.recipe import HarnessConfig
from stillhouse.store import fetch_source

HITS = ("acc", "exact_match")
"""Metrics that say right or wrong of an item; a task's first one of these counts."""
KINDS = ("multiple_choice", "loglikelihood", "generate_until")
"""Of tasks whose items can be right or wrong, as ``output_type``."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A task of the harness, with the items that every model is asked."""

    suite: str
    task: Any
    """An ``lm_eval.api.task.Task``."""
    metric: str
    """Its metric that says right or wrong."""
    config: HarnessConfig
    workspace: Path
    """For caches."""
    items_sha256: str
    """Digest of the items as models are asked them, worked examples included, and of what is right."""
    num_items: int

    def __len__(self) -> int:
        return self.num_items

    @property
    def info(self) -> SuiteInfo:
        """What the records don't say about the suite."""
        return SuiteInfo(name=self.suite, kind="benchmark", items_sha256=self.items_sha256)


def build_benchmarks(config: HarnessConfig, workspace: Path) -> list[Benchmark]:
    """Build the tasks that a recipe names.

    Args:
        config: Which tasks, with how many worked examples and items.
        workspace: Folder for the caches of the data sets.

    Raises:
        ConfigurationError: The harness is not installed; a task is unknown, is a group, asks for code or for models
            that see or hear, has no right or wrong for each item, or draws its answers at random; its files are
            unfit; or its data set can't be had offline.
        TryAgain: A model hub does not answer.
    """
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        raise ConfigurationError(
            "evaluation.harness needs the lm-evaluation-harness; pip install 'stillhouse[harness]'"
        ) from None
    with working_harness(config, workspace):
        tasks = _load(config)
        return [_benchmark(suite, tasks[name], config, workspace) for suite, name in config.suites().items()]


@contextmanager
def working_harness(config: HarnessConfig, workspace: Path) -> Iterator[None]:
    """Let the harness work reproducibly and quietly, with caches in ``workspace``.

    Its templates run in jinja's sandbox, since a recipe's folder may bring some. Its bars and its log, which has items
    in it, are dropped.
    """
    import datasets
    from jinja2.sandbox import SandboxedEnvironment
    from lm_eval import utils
    from transformers import set_seed

    sandbox = SandboxedEnvironment(loader=utils.env.loader, undefined=utils.env.undefined, keep_trailing_newline=True)
    sandbox.filters.update(utils.env.filters)
    log = logging.getLogger("lm_eval")
    before = (utils.env, datasets.config.HF_DATASETS_CACHE, datasets.config.DOWNLOADED_DATASETS_PATH, log.level)
    cache = workspace / "datasets"
    set_seed(config.seed)
    try:
        utils.env = sandbox
        datasets.config.HF_DATASETS_CACHE, datasets.config.DOWNLOADED_DATASETS_PATH = cache, cache / "downloads"
        log.setLevel(logging.CRITICAL)
        with redirect_stderr(StringIO()):
            yield
    finally:
        utils.env, datasets.config.HF_DATASETS_CACHE, datasets.config.DOWNLOADED_DATASETS_PATH = before[:3]
        log.setLevel(before[3])


def items_sha256(task: Any) -> str:
    """Digest a task's items as they were built: what a model is given, and the rows that tell what is right."""
    digest = hashlib.sha256()
    for request in task.instances:
        digest.update(json.dumps([request.doc_id, request.args, request.doc], sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _load(config: HarnessConfig) -> dict[str, Any]:
    """Return the named tasks."""
    from lm_eval.tasks import TaskManager

    local = read_tasks(fetch_source(config.source).resolve(), config.tasks) if config.source else {}
    shipped = [name for name in config.tasks if name not in local]
    manager = _shipped_tasks() if shipped else TaskManager(include_defaults=False)
    for name in shipped:
        # The manager would take a path for a name, and run Python that the file there names.
        if name not in manager.all_subtasks:
            what = "a group; name its tasks" if name in manager.all_tasks else "no task; see `lm-eval ls tasks`"
            raise ConfigurationError(f"evaluation.harness: {name} is {what}")
    return {name: _loaded(manager, name, local.get(name, name)) for name in config.tasks}


@cache
def _shipped_tasks() -> Any:
    """Return a manager that knows the thousands of tasks that ship with the harness; reading them takes a while."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _loaded(manager: Any, name: str, spec: str | Mapping[str, Any]) -> Any:
    from datasets.config import HF_HUB_OFFLINE

    try:
        (task,) = manager.load([spec])["tasks"].values()
    except ConnectionError:
        where = f"evaluation.harness: the data set of task {name} lies on a model hub, "
        if HF_HUB_OFFLINE:
            raise ConfigurationError(f"{where}and HF_HUB_OFFLINE is set; give the task as a local file") from None
        raise TryAgain(f"{where}which does not answer; check the network and HF_ENDPOINT") from None
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"evaluation.harness: task {name} needs the package {error.name}") from None
    except Exception as error:  # whatever the code of a task raises
        raise _unbuildable(name, error) from error
    return task


def _benchmark(suite: str, task: Any, config: HarnessConfig, workspace: Path) -> Benchmark:
    metric = _right_or_wrong(task)
    own = task.get_config("num_fewshot")
    task.set_config("num_fewshot", (own or 0) if config.num_fewshot is None or own == 0 else config.num_fewshot)
    try:
        task.set_fewshot_seed(seed=config.seed)
        task.build_all_requests(limit=config.limit)
    except Exception as error:  # whatever the code and the templates of a task raise
        raise _unbuildable(task.task_name, error) from error
    return Benchmark(
        suite=suite,
        task=task,
        metric=metric,
        config=config,
        workspace=workspace,
        items_sha256=items_sha256(task),
        num_items=len({request.doc_id for request in task.instances}),
    )


def _right_or_wrong(task: Any) -> str:
    """Return the metric that says right or wrong, unless the task is unfit."""
    where = f"evaluation.harness: task {task.task_name}"
    if getattr(task, "UNSAFE_CODE", False):
        raise ConfigurationError(f"{where} runs code that a model writes; choose another")
    if getattr(task, "MULTIMODAL", False):
        raise ConfigurationError(f"{where} shows images or plays sounds; choose another")
    generation = task.get_config("generation_kwargs") or {}
    if generation.get("do_sample") or float(generation.get("temperature") or 0) > 0:
        raise ConfigurationError(f"{where} draws answers at random; choose one with greedy answers")
    found = [metric for metric in HITS if metric in task.aggregation()]
    if not found or task.OUTPUT_TYPE not in KINDS:
        raise ConfigurationError(
            f"{where} does not say right or wrong of each item; choose one with the metric {' or '.join(HITS)}"
        )
    return found[0]


def _unbuildable(name: str, error: Exception) -> ConfigurationError:
    """Explain an error without its message, which may quote the data; a template's names what the data lacks."""
    from jinja2 import UndefinedError

    reason = str(error) if isinstance(error, UndefinedError) else type(error).__name__
    return ConfigurationError(f"evaluation.harness: task {name} can't be built from its data ({reason}); correct it")
