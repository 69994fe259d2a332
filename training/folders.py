"""Where `from_pretrained` finds a checkpoint folder and its code."""

from pathlib import Path
from typing import Any


def located(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Find out how `from_pretrained` opens a checkpoint folder.

    Args:
        folder: A folder with its code in it, or below the code as `tiny/` is.

    Returns:
        What `from_pretrained` takes, first argument and keywords.

    Raises:
        FileNotFoundError: If it is no such folder.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder} has no config.json; expected a folder with a checkpoint and this package's files in it."
        )
    if list(folder.glob("modeling_*.py")):
        return folder, {"trust_remote_code": True}
    return folder.resolve().parent, {"subfolder": folder.name, "trust_remote_code": True}
