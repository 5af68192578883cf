"""The common ground of every recipe section."""

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints


class Config(BaseModel):
    """A typed, frozen, keyword-only configuration. Unknown fields, NaN and infinity are refused."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        str_strip_whitespace=True,
        hide_input_in_errors=True,
    )


NAME_PATTERN = re.compile(r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$")

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN.pattern, max_length=63)]
"""Lower-case words joined by dashes: safe in an object key, a DAG id and a Kubernetes label."""

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""A SHA-256 digest as 64 lower-case hexadecimal digits."""

Task = Literal["text-classification", "masked-lm", "causal-lm"]
"""What a model is for."""

Precision = Literal["float32", "bfloat16"]
"""Of numbers in a model's memory, by torch's names."""
