"""Loading, saving and running classifiers, reproducibly."""

from stillhouse.models.encoding import Encoded, check_max_tokens, encode, length_buckets, pad_batch
from stillhouse.models.folders import check_model_folder, load_classifier, load_tokenizer, save_model, tokenizer_sha256
from stillhouse.models.predicting import Predictions, predict
from stillhouse.models.runtime import configure_torch

__all__ = [
    "Encoded",
    "Predictions",
    "check_max_tokens",
    "check_model_folder",
    "configure_torch",
    "encode",
    "length_buckets",
    "load_classifier",
    "load_tokenizer",
    "pad_batch",
    "predict",
    "save_model",
    "tokenizer_sha256",
]
