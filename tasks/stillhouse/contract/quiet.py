"""Nothing phones home, and a dead server is known within seconds."""

import logging
import os

QUIET = {
    "DO_NOT_TRACK": "1",
    "GX_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
}
"""Settings of the libraries that stages use; they read them when they are imported."""

_TALKATIVE = ("torchao", "torch.utils._pytree")
"""Loggers that warn, at import, of GPU kernels that a CPU can't load, and of each other's deprecated calls."""


def be_quiet() -> None:
    """Put `QUIET` into this process's environment, where it says nothing else, and silence what warns for nothing."""
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
