"""Models for steps of the compression chain."""

from tiny_language import tiny_tokenizer
from transformers import PreTrainedModel

from stillhouse.compression.base import Subject


def subject(model: PreTrainedModel) -> Subject:
    return Subject(model=model, tokenizer=tiny_tokenizer(), task="causal-lm")
