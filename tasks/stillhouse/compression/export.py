"""A classifier in ONNX, for ONNX Runtime."""

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from stillhouse.compression.base import Calibration, Cut, Operation, Subject
from stillhouse.contract import ConfigurationError
from stillhouse.models import save_tokenizer
from stillhouse.models.factored import RANKS
from stillhouse.models.onnx_folder import ONNX_FILE, ONNX_INPUTS, ONNX_OUTPUT
from stillhouse.recipe import ExportStep

OPSET = 18
"""Version of ONNX's operators: read by ONNX Runtime since 1.14."""
_DID = {
    "onnx": "exported to ONNX, weights unchanged",
    "onnx-int8": "exported to ONNX, weights and embeddings rounded to 8 bits, activations by their range at each call",
}
_OF_THE_MAKING = ("doc_string", "metadata_props", "value_info", "producer_name", "producer_version")
"""Fields of ONNX that say how and where a model was made, or what follows from the rest of it."""


class _Logits(nn.Module):
    """A classifier from its two inputs to its one output."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        logits_BC: torch.Tensor = self.model(input_ids=ids_BT, attention_mask=mask_BT).logits
        return logits_BC


@dataclass(frozen=True)
class Export(Operation):
    """The model as one ONNX file with its config and tokenizer, as it is or rounded to 8 bits.

    Rounded weights have a scale for each output channel, which comes nearer to them than one for a whole matrix. They
    are kept to 7 of their 8 bits. Processors without VNNI add products of 8 bits in pairs to 16, which overflow, so
    that a model judged on one machine would answer otherwise on another; products of 7 bits fit (ONNX Runtime's manual,
    "Quantize ONNX models").
    """

    step: ExportStep

    def cut(self, subject: Subject, calibration: Calibration, *, turn: int, rounds: int) -> Cut:
        """Say what is going to be written; nothing is cut.

        Raises:
            ConfigurationError: The model is no classifier.
        """
        if subject.task != "text-classification":
            raise ConfigurationError(
                f"step {self.step.name} exports classifiers, and the task is {subject.task}; remove the step"
            )
        return Cut(subject=subject, did=_DID[self.step.format])

    def write(self, subject: Subject, folder: Path) -> None:
        """Write the ONNX file, the config that names the labels, and the tokenizer. Equal models give equal bytes.

        Raises:
            ConfigurationError: PyTorch can't export the architecture.
            OSError: The folder can't be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        with _silence():
            exported = _export(subject.model)
            if self.step.format == "onnx-int8":
                exported = _rounded(exported)
        _strip(exported)
        _name_used_operators(exported)
        (folder / ONNX_FILE).write_bytes(exported.SerializeToString(deterministic=True))
        config = copy.deepcopy(subject.model.config)
        config._name_or_path = ""  # a path of this machine
        config.architectures = [type(subject.model).__name__]
        if hasattr(config, RANKS):
            delattr(config, RANKS)  # the graph is what it is
        config.save_pretrained(folder)
        save_tokenizer(subject.tokenizer, folder)


def _export(model: Any) -> Any:
    """Return the ONNX model, of any number of texts of any length that the model has positions for."""
    # Of a copy: PyTorch notes things down in what it traces, and a GPU's graph is another one.
    module = _Logits(copy.deepcopy(model).cpu().float()).eval()
    ids_BT = torch.zeros((2, 4), dtype=torch.int64)
    mask_BT = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    positions = getattr(model.config, "max_position_embeddings", None)
    shape = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("tokens", min=1, max=positions)}
    try:
        program = torch.onnx.export(
            module,
            (ids_BT, mask_BT),
            input_names=ONNX_INPUTS,
            output_names=(ONNX_OUTPUT,),
            dynamic_shapes=(shape, shape),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = str(error).partition("\n")[0]
        raise ConfigurationError(
            f"a {type(model).__name__} can't be exported to ONNX ({reason}); remove the step"
        ) from error
    assert program is not None  # of a dynamo export
    return program.model_proto


def _rounded(model: Any) -> Any:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with TemporaryDirectory() as private:
        path = Path(private, ONNX_FILE)
        quantize_dynamic(model, path, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True)
        return onnx.load(path)


def _strip(message: Any) -> None:
    """Remove what says how the model was made: stack traces with this machine's paths, and the names of versions."""
    for field, value in message.ListFields():
        if field.name in _OF_THE_MAKING:
            message.ClearField(field.name)
        elif field.message_type is not None:
            for child in value if field.is_repeated else (value,):
                _strip(child)


def _name_used_operators(model: Any) -> None:
    """Keep the sets of operators that nodes are from: ONNX Runtime lists all that it has, in no order."""
    domains = {node.domain for node in model.graph.node}
    used = sorted((found for found in model.opset_import if found.domain in domains), key=lambda found: found.domain)
    del model.opset_import[:]
    model.opset_import.extend(used)


@contextmanager
def _silence() -> Iterator[None]:
    """Let the exporters' remarks to their developers go; what goes wrong is raised."""
    before = logging.root.manager.disable
    handler = logging.NullHandler()  # else the first message to the root logger would install one that prints
    logging.root.addHandler(handler)
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        logging.root.removeHandler(handler)
