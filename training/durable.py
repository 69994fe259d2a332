"""Files and folders that are whole or not there: written beside their place, and renamed once they are complete.

A kill or a full disk at any moment leaves what was there before.
"""

import json
import logging
import os
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any


logger = logging.getLogger(__name__)
MANIFEST = "manifest.json"
CHUNK = 1 << 20
WEIGHTS = (".safetensors", ".index.json")


def partial_path(path: Path) -> Path:
    """Return where a file or folder is written before it takes its place."""
    return path.with_name(f".{path.name}.partial")


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file at once; a failure leaves the file that was there."""
    partial = partial_path(path)
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file at once, see `write_bytes`."""
    write_bytes(path, text.encode())


def save_figure(figure: Any, path: Path, **options: Any) -> None:
    """Write a figure of matplotlib at once, see `write_bytes`."""
    buffer = BytesIO()
    figure.savefig(buffer, format=path.suffix.removeprefix("."), **options)
    write_bytes(path, buffer.getvalue())


@contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """Give a folder to write to, which takes the place of `target` at the end; a failure leaves `target` as it is.

    Args:
        target: The folder. What it holds beside weights is in the new one as well, until it is written anew.

    Yields:
        The folder to write to.
    """
    target = recovered(target.resolve())
    partial, old = partial_path(target), _old_path(target)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        if target.is_dir():
            _copy_all_but_weights(target, partial)
        yield partial
        for file in partial.rglob("*"):
            _sync(file)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if target.exists():
        target.rename(old)  # should the process end here, `recovered` finds it
    partial.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def recovered(target: Path) -> Path:
    """Put a folder back in its place if a kill came between the two renames of `replaced_folder`; return it."""
    old = _old_path(target) if target.name else target
    if old != target and old.is_dir():
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(target)
            logger.warning("%s was being replaced when the process ended; it is as it was before", target)
    return target


def seal(folder: Path) -> None:
    """Write down size and checksum of every file of a folder; it counts as whole from then on."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != MANIFEST)
    for file in files:
        _sync(file)
    content = {file.relative_to(folder).as_posix(): [file.stat().st_size, _checksum(file)] for file in files}
    write_text(folder / MANIFEST, json.dumps(content, indent=1) + "\n")


def sealed_files(folder: Path) -> list[str]:
    """Return the names of the files that a folder was sealed with."""
    return list(json.loads((folder / MANIFEST).read_text("utf-8")))


def damage(folder: Path) -> str:
    """Say what a sealed folder lacks; nothing if it is whole."""
    try:
        content = json.loads((folder / MANIFEST).read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return f"it has no {MANIFEST}: it was not written to its end"
    except ValueError:
        return f"{MANIFEST} is damaged"
    for name, (size, checksum) in content.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size or _checksum(file) != checksum:
            return f"{name} is damaged"
    return ""


def _old_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _copy_all_but_weights(source: Path, target: Path) -> None:
    for file in source.iterdir():
        if file.is_dir():
            shutil.copytree(file, target / file.name)
        elif not file.name.endswith(WEIGHTS):
            shutil.copy2(file, target / file.name)


def _checksum(file: Path) -> int:
    checksum = 0
    with file.open("rb") as opened:
        while chunk := opened.read(CHUNK):
            checksum = zlib.crc32(chunk, checksum)
    return checksum


def _sync(file: Path) -> None:
    """Wait until a file is on the disk."""
    if file.is_file():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
