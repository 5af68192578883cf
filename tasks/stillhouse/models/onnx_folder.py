"""Classifiers in ONNX Runtime, which answer as PyTorch's do."""

import math
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from stillhouse.contract import ConfigurationError

ONNX_FILE = "model.onnx"
ONNX_INPUTS = ("input_ids", "attention_mask")
ONNX_OUTPUT = "logits"

_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
"""Of the operators that ONNX Runtime brings along."""
_QUANTIZATION_SUFFIXES = ("_scale", "_zero_point")
"""What ONNX Runtime calls the constants by which it rounds a tensor: they go with weights and are none."""
_FATAL = 4


def is_onnx_folder(folder: Path) -> bool:
    """Tell whether a model is read by ONNX Runtime: safetensors beside an ONNX file are what is read."""
    return (folder / ONNX_FILE).is_file() and not any(folder.glob("*.safetensors"))


def check_onnx_file(path: Path) -> None:
    """Refuse an ONNX model that is more or less than one file of data.

    Raises:
        ConfigurationError: It is unreadable, keeps weights in other files, or has operators that need further code.
    """
    model = _parse(path)
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    own = {(function.domain, function.name) for function in model.functions}
    foreign = sorted({node.domain for node in nodes if (node.domain, node.op_type) not in own} - {*_DOMAINS})
    if foreign:
        raise ConfigurationError(f"{path} has operators of {foreign[0]}, which need code of their own; export it anew")
    if any(tensor.external_data for tensor in model.graph.initializer):
        raise ConfigurationError(f"{path} keeps weights in other files; export it with all of them inside")


class OnnxClassifier(nn.Module):
    """A classifier that runs on the CPU in ONNX Runtime, with as many threads as PyTorch has when it is loaded.

    It has what predictions and measurements ask of a transformers model: config, device, a call.

    Args:
        folder: Holds ``model.onnx``, whose inputs and output are called as transformers calls them.
        config: Of the transformers model that it was made from.

    Raises:
        ConfigurationError: The file is damaged, needs code or files from elsewhere, or answers something else than the
            config says.
    """

    def __init__(self, folder: Path, config: Any) -> None:
        super().__init__()
        import onnxruntime  # takes long, and few need it

        self.config = config
        self._path = folder / ONNX_FILE
        onnxruntime.disable_telemetry_events()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.use_deterministic_compute = True
        options.log_severity_level = _FATAL  # what goes wrong is raised
        # Threads that wait for the next call by turning in circles would slow down whatever is measured beside.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            self._session = onnxruntime.InferenceSession(self._path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no other base
            reason = str(error).partition("\n")[0]
            raise ConfigurationError(f"{self._path} can't be loaded ({reason}); export it anew") from error
        self._check_ends()

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return torch.device("cpu")

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, output_hidden_states: bool = False
    ) -> SequenceClassifierOutput:
        """Return the logits.

        Raises:
            ConfigurationError: Hidden states are asked for.
        """
        if output_hidden_states:
            raise ConfigurationError(f"{self._path} gives logits only; read hidden states from the model it came from")
        tensors = (input_ids, attention_mask)
        feed = {name: tensor.numpy() for name, tensor in zip(ONNX_INPUTS, tensors, strict=True)}
        (logits_BC,) = self._session.run([ONNX_OUTPUT], feed)
        return SequenceClassifierOutput(logits=torch.from_numpy(logits_BC))

    def train(self, mode: bool = True) -> Self:
        """Do nothing for evaluation mode, which is the only one.

        Raises:
            ConfigurationError: ``mode`` is true.
        """
        if mode:
            raise ConfigurationError(f"{self._path} can't be trained; give the model that it was exported from")
        return super().train(mode)

    def num_weights(self) -> int:
        """Return the number of weights in the file, whatever they are rounded to."""
        import onnx

        kinds = onnx.TensorProto
        of_weights = (kinds.FLOAT, kinds.FLOAT16, kinds.BFLOAT16, kinds.DOUBLE, kinds.INT8, kinds.UINT8)
        return sum(
            math.prod(tensor.dims)
            for tensor in _parse(self._path).graph.initializer
            # A constant of the computation has no dimensions.
            if tensor.dims and tensor.data_type in of_weights and not tensor.name.endswith(_QUANTIZATION_SUFFIXES)
        )

    def _check_ends(self) -> None:
        inputs = {node.name for node in self._session.get_inputs()}
        outputs = {node.name: node.shape for node in self._session.get_outputs()}
        if inputs != {*ONNX_INPUTS} or ONNX_OUTPUT not in outputs:
            raise ConfigurationError(
                f"{self._path} must take {' and '.join(ONNX_INPUTS)} and give {ONNX_OUTPUT}; export it anew"
            )
        if outputs[ONNX_OUTPUT][-1:] != [self.config.num_labels]:
            raise ConfigurationError(
                f"{self._path} gives logits of shape {outputs[ONNX_OUTPUT]} for {self.config.num_labels} labels in its "
                "config.json; give the one that it was exported with"
            )


def count_parameters(model: PreTrainedModel | OnnxClassifier) -> int:
    """Return the number of a model's weights; those that are tied count once."""
    if isinstance(model, OnnxClassifier):
        return model.num_weights()
    return sum(parameter.numel() for parameter in model.parameters())


def _parse(path: Path) -> Any:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        return onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise ConfigurationError(f"{path} is no readable ONNX model; restore the file") from error
