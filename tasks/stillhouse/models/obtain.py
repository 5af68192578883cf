"""One form for every source of a model: a folder."""

import shutil
from pathlib import Path

from stillhouse.models.gguf import convert_gguf


def obtain_model_folder(path: Path, workspace: Path) -> Path:
    """Return the model folder of what a source gave: the folder itself, or a GGUF file converted into the workspace.

    Args:
        path: A folder or a file.
        workspace: Kept between the tries of a stage; the file is converted there once.

    Raises:
        ConfigurationError: See `convert_gguf`.
        OSError: The workspace can't be written.
    """
    if path.suffix != ".gguf":
        return path
    converted = workspace / "converted"
    if not converted.exists():
        unfinished = workspace / "converted.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        convert_gguf(path, unfinished)
        unfinished.rename(converted)
    return converted
