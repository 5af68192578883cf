"""Proof that a registered model can be used: load it as its users will, in this fresh process, and predict.

``python -m stillhouse.promotion.loadback URI [PUBLIC_KEY]`` prints one JSON object with the digest of the files, and
what the model said. The server comes from ``MLFLOW_TRACKING_URI``; with a public key, in PEM, the signature is checked.
"""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from stillhouse.contract import StillhouseError, TryAgain
from stillhouse.promotion.packaging import MODEL_FOLDER, PIPELINES, SIGNATURE_FILE, check_package, form_of, task_of
from stillhouse.promotion.signing import verify_signature
from stillhouse.recipe import Task
from stillhouse.store import describe_tree

TEXT = "The plot is thin, but the actors make it worth the evening."
_MASKED = "The plot is {mask}, but the actors make it worth the evening."
_NEW_TOKENS = 8


def load_back(uri: str, public_pem: bytes | None = None) -> dict[str, Any]:
    """Download the model at ``uri``, check its files before anything is loaded from them, and let it predict.

    Args:
        uri: ``models:/NAME/VERSION``, ``models:/NAME@ALIAS`` or the folder of a package.
        public_pem: Key that must have signed it.

    Returns:
        ``sha256``: digest of the model's files, ``task``, and what `_PROOFS` has for the task.

    Raises:
        TryAgain: It can't be downloaded now.
        IntegrityError: The package holds more than data, or its signature is missing or wrong.
        ValueError: The model says nothing of use.
    """
    with TemporaryDirectory() as private:
        package = _download(uri, Path(private))
        check_package(package)
        if public_pem is not None:
            verify_signature(package / MODEL_FOLDER, package / SIGNATURE_FILE, public_pem)
        sha256 = describe_tree(package / MODEL_FOLDER).sha256
        task = task_of(package / MODEL_FOLDER)
        return {"sha256": sha256, "task": task, **_prove(package, task)}


def _download(uri: str, folder: Path) -> Path:
    import mlflow.artifacts
    from mlflow.exceptions import MlflowException
    from requests import RequestException

    try:
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(folder)))
    except (MlflowException, RequestException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise TryAgain(f"{uri} can't be downloaded: {reason}") from error


def _prove(package: Path, task: Task) -> dict[str, Any]:
    match form_of(package / MODEL_FOLDER):
        case "onnx":
            return _classify_by_onnx(package)
        case "low-rank":
            return _PROOFS[task](_own_pipeline(package / MODEL_FOLDER, task))
    import mlflow.transformers

    return _PROOFS[task](mlflow.transformers.load_model(str(package)))


def _own_pipeline(folder: Path, task: Task) -> Any:
    """Return what transformers makes of a model that only Stillhouse reads."""
    from transformers import pipeline

    from stillhouse.models import load_model, load_tokenizer

    model = load_model(folder, task=task, labels=_labels(folder))
    return pipeline(PIPELINES[task].task, model=model, tokenizer=load_tokenizer(folder))


def _classify_by_onnx(package: Path) -> dict[str, Any]:
    import mlflow.onnx
    import torch

    from stillhouse.models import load_model, load_tokenizer, predict

    mlflow.onnx.load_model(str(package))
    folder = package / MODEL_FOLDER
    labels = _labels(folder)
    model = load_model(folder, task="text-classification", labels=labels)
    tokenizer = load_tokenizer(folder)
    logits_NC = predict(model, tokenizer, [TEXT], batch_size=1, max_tokens=len(tokenizer(TEXT)["input_ids"])).logits_NC
    probabilities_C = torch.from_numpy(logits_NC[0]).softmax(dim=0)
    best = int(probabilities_C.argmax())
    return {"label": labels[best], "score": float(probabilities_C[best]), "labels": labels}


def _labels(folder: Path) -> list[str]:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return [config.id2label[index] for index in sorted(config.id2label)]


def _classify(classifier: Any) -> dict[str, Any]:
    labels = list(classifier.model.config.id2label.values())
    prediction = classifier([TEXT])[0]
    label, score = prediction["label"], float(prediction["score"])
    if label not in labels or not _is_probability(score):
        raise ValueError(f"the prediction is ({label!r}, {score}) for labels {labels}")
    return {"label": label, "score": score, "labels": labels}


def _fill_mask(filler: Any) -> dict[str, Any]:
    best = filler(_MASKED.format(mask=filler.tokenizer.mask_token), top_k=1)[0]
    score = float(best["score"])
    if not _is_probability(score):
        raise ValueError(f"the filled mask has score {score}")
    return {"token": best["token_str"], "score": score}


def _continue(generator: Any) -> dict[str, Any]:
    import torch

    generated = generator(TEXT, max_new_tokens=_NEW_TOKENS, min_new_tokens=1, do_sample=False, return_full_text=False)
    continuation = generated[0]["generated_text"]
    ids_BT = generator.tokenizer(TEXT, return_tensors="pt")["input_ids"].to(generator.model.device)
    with torch.inference_mode():
        logits_BTV = generator.model(input_ids=ids_BT).logits
    # Logits of padding in the vocabulary may be -inf; the most likely token's may not.
    if not isinstance(continuation, str) or not torch.isfinite(logits_BTV.amax(dim=-1)).all():
        raise ValueError("the logits are not finite")
    return {"continuation": continuation, "max_logit": float(logits_BTV.max())}


def _is_probability(score: float) -> bool:
    return math.isfinite(score) and 0 <= score <= 1


_PROOFS: dict[Task, Callable[[Any], dict[str, Any]]] = {
    "text-classification": _classify,
    "masked-lm": _fill_mask,
    "causal-lm": _continue,
}


if __name__ == "__main__":
    key = sys.argv[2].encode() if len(sys.argv) > 2 else None
    try:
        proof = load_back(sys.argv[1], key)
    except StillhouseError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
    sys.stdout.write(json.dumps(proof) + "\n")
