"""A real MLflow server."""

from collections.abc import Iterator

import pytest
from servers import mlflow_server


@pytest.fixture(scope="session")
def mlflow_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as server:
        yield server.url
