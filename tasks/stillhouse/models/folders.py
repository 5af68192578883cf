"""Model folders: what is accepted, how a model is read from one and written to one."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers import PreTrainedTokenizerBase as Tokenizer

from stillhouse.contract import ConfigurationError, canonical_json, sha256_of
from stillhouse.models.factored import RANKS, read_factored
from stillhouse.models.onnx_folder import OnnxClassifier, is_onnx_folder
from stillhouse.models.runtime import inference_device
from stillhouse.recipe import Precision, Task

logger = logging.getLogger(__name__)

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
HEAD_SEED = 0
"""Of a new head: a constant, so that the same folder is the same model in every process."""


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """How transformers calls the models of a task."""

    loader: Any
    suffixes: tuple[str, ...]
    """Of the architectures that have the task's head."""


KINDS: dict[Task, _Kind] = {
    "text-classification": _Kind(loader=AutoModelForSequenceClassification, suffixes=("ForSequenceClassification",)),
    "masked-lm": _Kind(loader=AutoModelForMaskedLM, suffixes=("ForMaskedLM",)),
    "causal-lm": _Kind(loader=AutoModelForCausalLM, suffixes=("ForCausalLM", "LMHeadModel")),
}


def check_model_folder(folder: Path) -> None:
    """Refuse a folder from which a model can't be read as plain data.

    Raises:
        ConfigurationError: There is no readable ``config.json``, neither safetensors weights nor an ONNX file, or code
            of its own.
    """
    if not (folder / "config.json").is_file():
        raise ConfigurationError(f"model folder {folder} has no config.json; give a folder saved by save_pretrained")
    for name in ("config.json", "tokenizer_config.json"):
        if "auto_map" in _read_json(folder / name):
            raise ConfigurationError(
                f"model folder {folder} asks for custom code (auto_map in {name}); use a built-in one"
            )
    if any(folder.glob("*.safetensors")) or is_onnx_folder(folder):
        return
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLE_SUFFIXES)
    if pickles:
        raise ConfigurationError(
            f"model folder {folder} has pickled weights only ({pickles[0]}); convert to safetensors"
        )
    raise ConfigurationError(f"model folder {folder} has no weights; add model.safetensors")


def load_model(
    folder: Path,
    *,
    task: Task,
    labels: Sequence[str] = (),
    precision: Precision = "float32",
    new_head: bool = False,
) -> PreTrainedModel:
    """Read a model for a task, in evaluation mode, and put it on the device of this process.

    A checkpoint without a classification head gets a new one, always the same for the same folder and labels; a
    language model must have its head, which may be its embeddings, unless it is about to be taught. The caller's
    random state is left as it was.

    A folder with an ONNX file gives an `OnnxClassifier`, which predicts as a model of transformers does, on the CPU.

    Args:
        folder: See `check_model_folder`.
        task: What the model is for.
        labels: Of a classifier, in the order of its outputs.
        precision: Of the weights in memory.
        new_head: Also give a language model that lacks its head a new one, as if it were a classifier.

    Raises:
        ConfigurationError: The folder is unfit, incomplete or unreadable, its model is for another task, or its
            classifier has other labels.
    """
    check_model_folder(folder)
    kind = KINDS[task]
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        has_head = any(name.endswith(kind.suffixes) for name in config.architectures or ())
        _check_task(folder, config, task)
        if task == "text-classification":
            _set_labels(folder, config, labels, has_head)
        if is_onnx_folder(folder):
            if task != "text-classification" or not has_head:
                raise ConfigurationError(f"{folder} has an ONNX model, which must be a classifier; give another folder")
            return OnnxClassifier(folder, config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(HEAD_SEED)
            options = {"config": config, "dtype": precision, "use_safetensors": True, "local_files_only": True}
            if hasattr(config, RANKS):
                model, info = read_factored(kind.loader, folder, **options)
            else:
                model, info = kind.loader.from_pretrained(
                    folder, trust_remote_code=False, output_loading_info=True, **options
                )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigurationError(f"model folder {folder} can't be loaded ({reason}); check its files") from error
    may_be_new = (new_head or task == "text-classification") and not has_head
    _check_complete(folder, model, info["missing_keys"], new_head=may_be_new)
    placed: PreTrainedModel = model.eval().to(inference_device())
    return placed


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read a tokenizer. One without a padding token, as decoders have, pads with its end-of-sequence token.

    Padding is always masked by place, never by id, so that the two uses don't meet.

    Raises:
        ConfigurationError: The folder has none, it needs code of its own, it is not a fast one, or it has neither of
            the two tokens.
    """
    check_model_folder(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigurationError(f"tokenizer in {folder} can't be loaded ({reason}); check its files") from error
    if not tokenizer.is_fast:
        raise ConfigurationError(f"tokenizer in {folder} has no tokenizer.json; save it as a fast tokenizer")
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is not None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise ConfigurationError(f"tokenizer in {folder} has no padding token; set pad_token")
    return tokenizer


def save_model(model: PreTrainedModel, tokenizer: Tokenizer, folder: Path) -> None:
    """Write safetensors weights, config and tokenizer, and nothing else. Equal models give equal bytes.

    Raises:
        OSError: The folder can't be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # transformers writes down where a model was read from: a path of this machine, and no property of the model.
    model.config._name_or_path = ""
    model.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write a tokenizer into a model's folder. Equal tokenizers give equal bytes.

    Raises:
        OSError: The folder can't be written.
    """
    # Set by the last call, and no property of the tokenizer.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.save_pretrained(folder)


def tokenizer_sha256(tokenizer: Tokenizer) -> str:
    """Digest everything that decides which token ids a text becomes, truncation and padding apart."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    # Both are set by calls, not by the tokenizer's files.
    plain = {key: value for key, value in state.items() if key not in ("truncation", "padding")}
    return sha256_of(canonical_json({"backend": plain, "pad": tokenizer.pad_token_id}))


def template_sha256(tokenizer: Tokenizer) -> str:
    """Digest what turns a prompt and its answer into one text: the chat template and the special tokens in it."""
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return sha256_of(canonical_json({"template": tokenizer.chat_template, "special": special}))


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} is no readable JSON; restore the file") from error
    if not isinstance(data, dict):
        raise ConfigurationError(f"{path} is no JSON object; restore the file")
    return data


def _check_task(folder: Path, config: Any, task: Task) -> None:
    """Refuse one kind of language model as the other: as a causal model, an encoder would see what it predicts."""
    for other in ("masked-lm", "causal-lm"):
        names = [name for name in config.architectures or () if name.endswith(KINDS[other].suffixes)]
        if names and task not in (other, "text-classification"):
            raise ConfigurationError(f"model in {folder} is a {names[0]}, not for {task}; give another model or task")


def _set_labels(folder: Path, config: Any, labels: Sequence[str], has_head: bool) -> None:
    if not has_head:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
        return
    found = [config.id2label[index] for index in sorted(config.id2label)]
    if found != list(labels):
        raise ConfigurationError(
            f"classifier in {folder} has labels {', '.join(found)} and the recipe {', '.join(labels)}; "
            "give the same labels in the same order, or a model without a head and teacher.finetune"
        )


def _check_complete(folder: Path, model: Any, missing_keys: Sequence[str], *, new_head: bool) -> None:
    prefix = f"{model.base_model_prefix}."
    # A pooler is missing from masked language models: it belongs to the new head.
    absent = sorted(key for key in missing_keys if not new_head or (key.startswith(prefix) and ".pooler." not in key))
    if absent:
        raise ConfigurationError(f"model folder {folder} lacks {len(absent)} weights ({absent[0]}); restore the file")
    if missing_keys:
        logger.info("new head on the model in %s", folder)
