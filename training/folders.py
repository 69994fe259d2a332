"""Opens checkpoint folders: where `from_pretrained` finds one and its code is known here alone."""

import re
from pathlib import Path
from typing import Any

from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

from training.durable import recovered


def located(folder: Path | str) -> tuple[Path | str, dict[str, Any]]:
    """Find out how `from_pretrained` opens a checkpoint folder.

    Args:
        folder: A folder with its code in it, or below the code as `tiny/` is; or a repository of the Hub, as
            `owner/name`.

    Returns:
        What `from_pretrained` takes, first argument and keywords.

    Raises:
        FileNotFoundError: If it is neither.
    """
    path = recovered(Path(folder))
    if not path.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", str(folder)):
        return str(folder), {"trust_remote_code": True}
    if not (path / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder} has no config.json; expected a folder with a checkpoint and this package's files in it."
        )
    if list(path.glob("modeling_*.py")):
        return path, {"trust_remote_code": True}
    return path.resolve().parent, {"subfolder": path.resolve().name, "trust_remote_code": True}


def local_folder(folder: Path | str) -> Path:
    """Insist on a folder of this machine, for a checkpoint whose files are copied.

    Args:
        folder: What a user gave.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: If there is no such folder.
    """
    path = recovered(Path(folder))
    if not path.is_dir():
        raise FileNotFoundError(
            f"{folder} is not a folder; expected a local one, for its files are copied beside the new weights. "
            f"A repository of the Hub is brought by: hf download {folder} --local-dir FOLDER"
        )
    return path


def load_model(folder: Path | str, **options: Any) -> PreTrainedModel:
    """Load the model of a checkpoint folder.

    Args:
        folder: See `located`.
        **options: What `from_pretrained` takes; by default the model has the checkpoint's dtype.

    Returns:
        The model.
    """
    place, where = located(folder)
    return AutoModelForImageTextToText.from_pretrained(place, **{"dtype": "auto", **options}, **where)


def load_processor(folder: Path | str, **options: Any) -> ProcessorMixin:
    """Load the processor of a checkpoint folder, see `located`.

    Args:
        folder: See `located`.
        **options: What `from_pretrained` takes.

    Returns:
        The processor.
    """
    place, where = located(folder)
    return AutoProcessor.from_pretrained(place, **options, **where)
