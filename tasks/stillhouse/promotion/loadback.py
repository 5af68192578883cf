"""Proof that a registered model can be used: load it as its users will, in this fresh process, and predict.

``python -m stillhouse.promotion.loadback URI`` prints one JSON object with the digest of the files, and the
prediction. The server comes from ``MLFLOW_TRACKING_URI``.
"""

import json
import math
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from stillhouse.store import describe_tree

TEXT = "The plot is thin, but the actors make it worth the evening."


def load_back(uri: str) -> dict[str, Any]:
    """Load the model at ``uri`` and predict.

    Returns:
        ``sha256``: digest of the model's files, ``label`` and ``score``: the prediction, ``labels``: all labels.

    Raises:
        ValueError: The prediction is no probability of a known label.
    """
    import mlflow.transformers

    with TemporaryDirectory() as folder:
        classifier = mlflow.transformers.load_model(uri, dst_path=folder)
        sha256 = describe_tree(Path(folder, "model")).sha256
    labels = list(classifier.model.config.id2label.values())
    prediction = classifier([TEXT])[0]
    label, score = prediction["label"], float(prediction["score"])
    if label not in labels or not math.isfinite(score) or not 0 <= score <= 1:
        raise ValueError(f"the prediction is ({label!r}, {score}) for labels {labels}")
    return {"sha256": sha256, "label": label, "score": score, "labels": labels}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(load_back(sys.argv[1])) + "\n")
