"""A checkpoint folder is found with its code in it, below its code, or on the Hub; what is neither is named."""

import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from training import folders  # noqa: E402


def test_where_code_is(tiny_folder, monkeypatch):
    trusted = {"trust_remote_code": True}
    assert folders.located(tiny_folder) == (tiny_folder, trusted)
    assert folders.located("someone/InternVL-tiny") == ("someone/InternVL-tiny", trusted)
    below = (ROOT, {"subfolder": "tiny", **trusted})
    assert folders.located(ROOT / "tiny") == below
    monkeypatch.chdir(ROOT / "tiny")
    assert folders.located(".") == below


@pytest.mark.parametrize("name", ["gone", "/gone/for/good"])
def test_no_folder(name):
    with pytest.raises(FileNotFoundError, match=f"{name} has no config.json; expected a folder with a checkpoint"):
        folders.located(name)


def test_what_is_loaded():
    model = folders.load_model(ROOT / "tiny")
    assert str(model.dtype) == "torch.bfloat16"
    assert type(folders.load_processor(ROOT / "tiny")).__name__ == "InternVLProcessor"


def test_files_are_copied_from_local_folders_alone(tmp_path):
    assert folders.local_folder(str(tmp_path)) == tmp_path
    with pytest.raises(FileNotFoundError, match="someone/InternVL is not a folder; .* hf download someone/InternVL"):
        folders.local_folder("someone/InternVL")
