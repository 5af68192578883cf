"""Where a planned task and a workflow run are found in Airflow. Knows nothing of Airflow's code."""


def workflow_run_id(dag_id: str, dag_run_id: str) -> str:
    """Return the name of a run beyond Airflow, where run ids of different DAGs would meet."""
    return f"{dag_id}__{dag_run_id}"


def airflow_place(task_id: str) -> tuple[str, int]:
    """Return the Airflow task and the map index under which the planned task ``task_id`` runs."""
    stage, _, shard = task_id.partition("-")
    return (stage, int(shard)) if stage in ("teach", "generate") else (task_id, -1)


def model_asset(model: str) -> str:
    """Return the URI of the Airflow asset that is updated when a registered model gets a champion.

    A recipe that starts from that model names it under ``schedule.assets``.
    """
    return f"stillhouse://models/{model}"
