"""Loading, saving and running models, reproducibly."""

from stillhouse.models.documents import Document, documents_of
from stillhouse.models.encoding import Encoded, check_max_tokens, encode, length_buckets, pad_batch
from stillhouse.models.folders import (
    check_model_folder,
    load_model,
    load_tokenizer,
    save_model,
    save_tokenizer,
    template_sha256,
    tokenizer_sha256,
)
from stillhouse.models.generating import (
    PromptAnswers,
    Sampling,
    answer_prompts,
    continue_prompts,
    decode_answer,
    end_tokens,
    prompt_tokens,
    stream_continuations,
)
from stillhouse.models.heads import OutputHead, check_head, head_states, output_head, vocabulary_size, watch_body
from stillhouse.models.layers import ModelShape, find_layers, is_causal, layers_prefix, linear_layers, model_shape
from stillhouse.models.likelihood import Likelihoods, last_logits, likelihoods
from stillhouse.models.obtain import obtain_model_folder
from stillhouse.models.onnx_folder import OnnxClassifier, count_parameters, is_onnx_folder
from stillhouse.models.predicting import Predictions, predict
from stillhouse.models.rebuilding import keep_endings, rebuild
from stillhouse.models.runtime import configure_torch, inference_device
from stillhouse.models.taps import Captured, Tap, TapRequest

__all__ = [
    "Captured",
    "Document",
    "Encoded",
    "Likelihoods",
    "ModelShape",
    "OnnxClassifier",
    "OutputHead",
    "Predictions",
    "PromptAnswers",
    "Sampling",
    "Tap",
    "TapRequest",
    "answer_prompts",
    "check_head",
    "check_max_tokens",
    "check_model_folder",
    "configure_torch",
    "continue_prompts",
    "count_parameters",
    "decode_answer",
    "documents_of",
    "encode",
    "end_tokens",
    "find_layers",
    "head_states",
    "inference_device",
    "is_causal",
    "is_onnx_folder",
    "keep_endings",
    "last_logits",
    "layers_prefix",
    "length_buckets",
    "likelihoods",
    "linear_layers",
    "load_model",
    "load_tokenizer",
    "model_shape",
    "obtain_model_folder",
    "output_head",
    "pad_batch",
    "predict",
    "prompt_tokens",
    "rebuild",
    "save_model",
    "save_tokenizer",
    "stream_continuations",
    "template_sha256",
    "tokenizer_sha256",
    "vocabulary_size",
    "watch_body",
]
