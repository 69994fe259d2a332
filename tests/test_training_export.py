"""Exporting a training checkpoint gives the embedded checkpoint folder, file by file."""

import filecmp

import pytest
import torch
from safetensors.torch import load_file, save_file
from training_scenes import ROOT  # noqa: F401  (puts the repository on the path)

from training import export, train
from training.prepare import TINY


pytestmark = pytest.mark.newest


def weights_of(folder):
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def test_the_embedded_checkpoint_is_its_own_export(tmp_path):
    embedded = weights_of(TINY)
    run = tmp_path / "run"
    run.mkdir()
    # Runs keep fp32 weights, and heads beside them.
    states = {f"model.{name}": value.float() for name, value in embedded.items()}
    save_file(states | {"heads.cell_reader.bias": torch.zeros(3)}, run / train.WEIGHTS_FILE)
    export.export(run, tmp_path / "tiny")
    exported = weights_of(tmp_path / "tiny")
    assert exported.keys() == embedded.keys()
    assert all(torch.equal(exported[name], embedded[name]) for name in embedded)
    names = {file.name for file in TINY.iterdir()} - {"README.md"}
    assert names == {file.name for file in (tmp_path / "tiny").iterdir()}
    data_files = [name for name in names if not name.endswith(".safetensors")]
    assert filecmp.cmpfiles(TINY, tmp_path / "tiny", data_files, shallow=False) == (data_files, [], [])


def test_the_mean_of_two_runs(tmp_path):
    embedded = weights_of(TINY)
    for run, factor in (("one", 1.0), ("two", 2.0)):
        (tmp_path / run).mkdir()
        states = {f"model.{name}": factor * value.float() for name, value in embedded.items()}
        save_file(states, tmp_path / run / train.WEIGHTS_FILE)
    export.export(tmp_path / "one", tmp_path / "tiny", tmp_path / "two", 0.25)
    for name, value in weights_of(tmp_path / "tiny").items():
        assert torch.equal(value, (0.75 * embedded[name].float() + 0.25 * (2 * embedded[name].float())).bfloat16()), (
            name
        )
    with pytest.raises(ValueError, match="The share is 2; expected a number from 0 to 1"):
        export.export(tmp_path / "one", tmp_path / "tiny", tmp_path / "two", 2)
    save_file({"model.x": torch.zeros(1)}, tmp_path / "two" / train.WEIGHTS_FILE)
    with pytest.raises(ValueError, match="two has other weights than .*one: "):
        export.export(tmp_path / "one", tmp_path / "tiny", tmp_path / "two")
