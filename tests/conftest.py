"""Shared fixtures: the package under an importable name, and the recorded answers of the official code."""

import os
import sys
import types
from pathlib import Path

import pytest


os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROOT = Path(__file__).resolve().parent.parent
GOLDENS = ROOT.parent / "shared" / "goldens"

# The Hub loader gives the flat files a package at run time; tests give them one under a name of their own.
package = types.ModuleType("internvl_chat")
package.__path__ = [str(ROOT)]
sys.modules["internvl_chat"] = package


@pytest.fixture(scope="session")
def goldens() -> Path:
    if not GOLDENS.is_dir():
        pytest.skip("the recorded answers of the official code (shared/goldens beside the repository) are not here")
    return GOLDENS
