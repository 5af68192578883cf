"""GGUF files, in which quantised models are passed around, as plain model folders."""

import logging
import struct
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from stillhouse.contract import ConfigurationError
from stillhouse.models.folders import save_model

logger = logging.getLogger(__name__)


def convert_gguf(file: Path, target: Path) -> None:
    """Write a GGUF file's causal language model as a folder with safetensors weights and its tokenizer.

    The quantised weights are expanded and kept as bfloat16, which loses less than their quantisation did. The chat
    template comes along if the file has one.

    Args:
        file: One whole model; its name ends in ``.gguf``.
        target: An empty or new folder.

    Raises:
        ConfigurationError: The file is damaged, lacks weights, or has an architecture that transformers can't read.
        OSError: The folder can't be written.
    """
    options = {"gguf_file": file.name, "local_files_only": True}
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **options)
        config = AutoConfig.from_pretrained(file.parent, **options)
        loaded, info = AutoModelForCausalLM.from_pretrained(
            file.parent, dtype=torch.bfloat16, output_loading_info=True, **options
        )
    except (OSError, ValueError, RuntimeError, KeyError, IndexError, NotImplementedError, struct.error) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigurationError(
            f"{file} can't be read as GGUF ({reason}); give a file of a supported model"
        ) from error
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ConfigurationError(f"{file} lacks {len(missing)} weights ({missing[0]}); give a whole model")
    # The loaded model believes that it is quantised and refuses to be saved; one of the plain config does not.
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    save_model(model, tokenizer, target)
    logger.info("converted %s: %.1fM parameters", file.name, model.num_parameters() / 1e6)
