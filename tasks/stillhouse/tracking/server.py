"""A quiet client of an MLflow server, and what the server's errors mean."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from requests import RequestException

from stillhouse.contract import NotPermitted, TryAgain, be_quiet, check_address


def connect(uri: str) -> MlflowClient:
    """Return a client of the server at ``uri``; it does not connect yet. The user's own MLflow settings win.

    Raises:
        ConfigurationError: The address holds a user's name or password.
    """
    check_address(uri)
    be_quiet()
    logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def server_errors_explained(uri: str) -> Iterator[None]:
    """Raise ``TryAgain`` when the server at ``uri`` is away, ``NotPermitted`` when it refuses the credentials."""
    try:
        yield
    except RequestException as error:
        raise _away(uri) from error
    except MlflowException as error:
        status = error.get_http_status_code()
        if status in (401, 403):
            raise NotPermitted(f"MLflow at {uri} refuses the credentials; check MLFLOW_TRACKING_USERNAME") from error
        if status >= 500 or status == 429:
            raise _away(uri) from error
        raise


def _away(uri: str) -> TryAgain:
    return TryAgain(
        f"MLflow at {uri} does not answer; start it or correct the address, then run again: nothing is lost"
    )
