"""How a student starts."""

from stillhouse.student.influence import block_influence
from stillhouse.student.initialise import Start, check_same_tokenizer, initialise, keep_layers, layers_config
from stillhouse.student.layers import layer_map
from stillhouse.student.lora import add_lora, merge_lora
from stillhouse.student.vocabulary import trim_vocabulary

__all__ = [
    "Start",
    "add_lora",
    "block_influence",
    "check_same_tokenizer",
    "initialise",
    "keep_layers",
    "layer_map",
    "layers_config",
    "merge_lora",
    "trim_vocabulary",
]
