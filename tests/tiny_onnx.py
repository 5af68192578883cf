"""A classifier in ONNX that is made in milliseconds: each token votes for the labels, and the votes are added."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tiny import write_teacher

BATCH = ["batch", "tokens"]


def votes(size: int, labels: int = 2, seed: int = 0) -> np.ndarray:
    """Return a table of votes, a row for each token."""
    return np.random.default_rng(seed).normal(size=(size, labels)).astype(np.float32)


def voting_model(table_VC: np.ndarray, *, inputs: Sequence[str] = ("input_ids", "attention_mask")) -> onnx.ModelProto:
    """Return the model with these votes, of unpadded and padded texts of any length."""
    nodes = [
        helper.make_node("Gather", ["table", inputs[0]], ["votes_BTC"]),
        helper.make_node("Cast", [inputs[1]], ["mask_BT"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask_BT", "last"], ["mask_BT1"]),
        helper.make_node("Mul", ["votes_BTC", "mask_BT1"], ["counted_BTC"]),
        helper.make_node("ReduceSum", ["counted_BTC", "middle"], ["logits"], keepdims=0),
    ]
    constants = {"table": table_VC, "last": np.array([-1]), "middle": np.array([1])}
    graph = helper.make_graph(
        nodes,
        "votes",
        [helper.make_tensor_value_info(name, TensorProto.INT64, BATCH) for name in inputs],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", table_VC.shape[1]])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def write_onnx(folder: Path, *, seed: int = 0) -> Path:
    """Write the model with the config and the tokenizer of `tiny.write_teacher`."""
    write_teacher(folder, layers=1)
    (folder / "model.safetensors").unlink()
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    (folder / "model.onnx").write_bytes(voting_model(votes(size, seed=seed)).SerializeToString())
    return folder
