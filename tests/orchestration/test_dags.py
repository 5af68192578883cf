import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from airflow.dag_processing.dagbag import DagBag
from airflow.serialization.serialized_objects import DagSerialization

from stillhouse.orchestration.airflow import StageOperator, build_dag, build_dags
from stillhouse.orchestration.places import airflow_place
from stillhouse.orchestration.plan import plan
from stillhouse.recipe import RecipeError, load_recipe

SHIPPED = Path(__file__).parents[2] / "dags"
HEAVY = ("torch", "transformers", "mlflow", "great_expectations", "datasets", "pandas", "sklearn", "scipy")


def change(recipe_file: Path, **sections: object) -> None:
    document = yaml.safe_load(recipe_file.read_text())
    recipe_file.write_text(yaml.safe_dump(document | sections))


def test_graph_follows_the_plan(recipe_file: Path) -> None:
    dag = build_dag(recipe_file)

    upstream = {task.task_id: task.upstream_task_ids for task in dag.tasks}
    assert upstream["validate"] == set()
    assert upstream["teach"] == {"prepare-teacher"}
    assert upstream["distill-sft"] == {"initialise"}
    assert upstream["distill-kd"] == {"initialise", "teach"}
    assert upstream["evaluate"] == {"distill-kd", "distill-sft"}
    assert upstream["approve"] == {"decide"}
    assert upstream["promote"] == {"approve"}
    assert upstream["announce"] == {"promote", "distill-kd", "distill-sft"}


def test_every_task_still_waits_for_all_that_it_reads(recipe_file: Path) -> None:
    dag = build_dag(recipe_file)

    for task in plan(load_recipe(recipe_file)):
        before = dag.get_task(airflow_place(task.task_id)[0]).get_flat_relative_ids(upstream=True)
        assert {airflow_place(up)[0] for up in task.upstream} <= before


def test_a_promotion_updates_the_asset_of_its_model_and_nothing_else_does(recipe_file: Path) -> None:
    dag = build_dag(recipe_file)

    updated = {task.task_id: [asset.uri for asset in task.outlets] for task in dag.tasks if task.outlets}
    assert updated == {"promote": ["stillhouse://models/toy"]}


def test_teacher_shards_are_mapped(recipe_file: Path) -> None:
    teach = build_dag(recipe_file).get_task("teach")

    assert teach.is_mapped
    assert teach.unmap({"planned_task": "teach-1"}).planned_task == "teach-1"
    assert teach.expand_input.value == {"planned_task": ["teach-0", "teach-1"]}


def on_docker(folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: object) -> None:
    runtime = {"kind": "docker", "image": "stillhouse-task:1", **settings}
    file = folder / "deployment.yaml"
    file.write_text(yaml.safe_dump({"runtime": runtime}))
    monkeypatch.setenv("STILLHOUSE_DEPLOYMENT", str(file))


def test_tasks_wait_for_as_many_accelerators_as_they_take(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(recipe_file, resources={"stages": {"teach": {"gpus": 2}, "distill": {"gpus": 2, "nodes": 3}}})
    on_docker(tmp_path, monkeypatch, max_parallel=4)
    dag = build_dag(recipe_file)

    teach, distill, validate = (dag.get_task(name) for name in ("teach", "distill-kd", "validate"))
    assert (teach.pool, teach.pool_slots) == ("gpu", 2)
    assert (distill.pool, distill.pool_slots) == ("gpu", 6)
    assert (validate.pool, validate.pool_slots) == ("default_pool", 1)
    assert teach.partial_kwargs["max_active_tis_per_dag"] == 4
    assert teach.operator_class.__name__ == "DockerStageOperator"
    assert distill.max_active_tis_per_dag is None


def test_deployment_may_limit_nothing(recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change(recipe_file, resources={"stages": {"teach": {"gpus": 2}}})
    on_docker(tmp_path, monkeypatch, gpu_pool=None)
    teach = build_dag(recipe_file).get_task("teach")
    assert teach.pool == "default_pool"
    assert teach.partial_kwargs["max_active_tis_per_dag"] is None


def test_processes_of_a_worker_wait_for_no_accelerator(recipe_file: Path) -> None:
    change(recipe_file, resources={"stages": {"teach": {"gpus": 2}}})
    assert build_dag(recipe_file).get_task("teach").pool == "default_pool"


def test_containers_do_not_keep_a_dag_from_being_stored(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_docker(tmp_path, monkeypatch)
    stored = json.dumps(DagSerialization.to_dict(build_dag(recipe_file)))
    assert "DockerStageOperator" in stored


def test_last_word_never_makes_a_failed_run_green(recipe_file: Path) -> None:
    dag = build_dag(recipe_file)

    assert dag.get_task("announce").is_teardown
    assert not dag.get_task("announce").on_failure_fail_dagrun
    assert [
        task.task_id for task in dag.tasks if not task.is_teardown and task.downstream_task_ids <= {"announce"}
    ] == ["promote"]


def test_every_task_is_documented_and_limited(recipe_file: Path) -> None:
    change(recipe_file, resources={"stages": {"evaluate": {"retries": 5, "timeout_hours": 0.5}}})
    dag = build_dag(recipe_file)

    assert all(task.doc_md for task in dag.tasks)
    assert dag.get_task("evaluate").retries == 5
    assert dag.get_task("evaluate").execution_timeout.total_seconds() == 1800
    assert dag.get_task("validate").retries == 2
    assert all(task.execution_timeout for task in dag.tasks if isinstance(task, StageOperator))


def test_dag_says_where_things_come_from(recipe_file: Path) -> None:
    dag = build_dag(recipe_file)

    assert "| train, ood-tweets | made up | MIT |" in dag.doc_md
    assert dag.max_active_runs == 1
    assert not dag.catchup


@pytest.mark.parametrize(
    ("schedule", "timetable"),
    [
        ({}, "NullTimetable"),
        ({"cron": "0 3 * * 1"}, "CronTriggerTimetable"),
        ({"assets": ["s3://bucket/train/"]}, "AssetTriggeredTimetable"),
        ({"cron": "0 3 * * 1", "assets": ["s3://bucket/train/"]}, "AssetOrTimeSchedule"),
    ],
)
def test_schedule_comes_from_the_recipe(recipe_file: Path, schedule: dict[str, object], timetable: str) -> None:
    change(recipe_file, schedule=schedule)
    dag = build_dag(recipe_file)

    assert type(dag.timetable).__name__ == timetable
    DagSerialization.to_dict(dag)


@pytest.mark.parametrize("schedule", [{"cron": "99 3 * * 1"}, {"assets": ["airflow://no"]}])
def test_schedule_that_airflow_refuses_names_the_file(recipe_file: Path, schedule: dict[str, object]) -> None:
    change(recipe_file, schedule=schedule)

    with pytest.raises(RecipeError, match=r"toy\.yaml: schedule: ") as error:
        build_dag(recipe_file)
    assert "\n" not in str(error.value)


def test_broken_recipe_costs_only_its_own_dag(project: Path, recipe_file: Path) -> None:
    broken = recipe_file.with_name("broken.yaml")
    shutil.copy(recipe_file, broken)
    change(broken, name="broken", distillation={"alpha": 1.5})
    for name in ("distillation.py", "broken_recipes.py"):
        shutil.copy(SHIPPED / name, project / "dags" / name)

    bag = DagBag(project / "dags")

    assert list(bag.dags) == ["toy"]
    (file, error), *others = bag.import_errors.items()
    assert not others
    assert file.endswith("broken_recipes.py")
    assert "broken.yaml: distillation.alpha" in error.splitlines()[-1]


def test_good_recipes_have_no_import_error(project: Path) -> None:
    for name in ("distillation.py", "broken_recipes.py"):
        shutil.copy(SHIPPED / name, project / "dags" / name)

    bag = DagBag(project / "dags")

    assert list(bag.dags) == ["toy"]
    assert not bag.import_errors
    assert bag.dags["toy"].fileloc.endswith("distillation.py")


def test_name_taken_by_another_recipe_is_refused(recipe_file: Path) -> None:
    shutil.copy(recipe_file, recipe_file.with_name("z.yaml"))

    built = build_dags(recipe_file.parent)

    assert list(built.dags) == ["toy"]
    assert "z.yaml: name: 'toy' is already" in built.errors[0]


def test_shipped_recipes_build() -> None:
    built = build_dags(SHIPPED / "recipes")

    assert not built.errors
    assert "quickstart" in built.dags


def test_parsing_is_light_and_stable() -> None:
    code = f"""
import json, sys, importlib.util
spec = importlib.util.spec_from_file_location("distillation", {str(SHIPPED / "distillation.py")!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
heavy = [name for name in {HEAVY!r} if name in sys.modules]
from airflow.sdk import DAG
from airflow.serialization.serialized_objects import DagSerialization
dags = {{name: DagSerialization.to_dict(dag) for name, dag in vars(module).items() if isinstance(dag, DAG)}}
print(json.dumps({{"heavy": heavy, "dags": dags}}))
"""
    first, second = (
        json.loads(
            subprocess.run(
                [sys.executable, "-c", code],
                check=True,
                capture_output=True,
                text=True,
                env=os.environ | {"PYTHONHASHSEED": seed},
            ).stdout.splitlines()[-1]
        )
        for seed in ("1", "2")
    )
    assert first["heavy"] == []
    assert first["dags"]
    assert first == second
