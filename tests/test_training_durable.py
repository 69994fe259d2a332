"""Files and folders are whole or as they were before: a failure, a full disk and a kill at any moment."""

import errno
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import Dataset
from transformers import PretrainedConfig, PreTrainedModel, TrainingArguments


ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from training import durable, train  # noqa: E402
from training.trainer import RunTrainer, last_checkpoint  # noqa: E402


pytestmark = pytest.mark.newest
STEPS = 6


@pytest.fixture
def full_disk(monkeypatch):
    """A disk with room for so many bytes."""

    def fill(room):
        left = [room]
        write = durable.Path.open

        def opened(path, mode="r", *args, **kwargs):
            file = write(path, mode, *args, **kwargs)
            return Limited(file, left) if "w" in mode else file

        monkeypatch.setattr(durable.Path, "open", opened)

    return fill


class Limited:
    def __init__(self, file, left):
        self.file, self.left = file, left

    def write(self, data):
        self.left[0] -= len(data)
        if self.left[0] < 0:
            self.file.write(data[: self.left[0]])
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.file.close()


def test_a_file_is_written_at_once(tmp_path, full_disk):
    path = tmp_path / "a.json"
    durable.write_text(path, "old")
    full_disk(2)
    with pytest.raises(OSError, match="No space left"):
        durable.write_text(path, "new and longer")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def folder_with(path, **files):
    path.mkdir(parents=True)
    for name, text in files.items():
        (path / name.replace("_", ".")).write_text(text)
    return path


def texts(folder):
    return {file.name: file.read_text() for file in folder.iterdir()}


def test_a_folder_is_replaced_at_once(tmp_path):
    target = folder_with(tmp_path / "model", model_safetensors="old", README_md="mine")
    old = texts(target)

    def fail():
        with durable.replaced_folder(target) as new:
            (new / "model.safetensors").write_text("ne")
            assert texts(target) == old
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert texts(target) == old
    assert [file.name for file in tmp_path.iterdir()] == ["model"]
    with durable.replaced_folder(target) as new:
        (new / "other.safetensors").write_text("new")
    assert texts(target) == {"other.safetensors": "new", "README.md": "mine"}
    with durable.replaced_folder(tmp_path / "deep" / "new") as new:
        (new / "a").write_text("a")
    assert texts(tmp_path / "deep" / "new") == {"a": "a"}


def test_a_kill_between_the_two_renames(tmp_path, caplog):
    """Nothing is in the target's place then; whoever opens or writes it finds the old one."""
    folder_with(tmp_path / ".model.old", model_safetensors="old")
    folder_with(tmp_path / ".model.partial", model_safetensors="ne")
    assert texts(durable.recovered(tmp_path / "model")) == {"model.safetensors": "old"}
    assert caplog.messages == [
        f"{tmp_path / 'model'} was being replaced when the process ended; it is as it was before"
    ]
    folder_with(tmp_path / ".model.old", model_safetensors="older")  # a kill after both
    assert texts(durable.recovered(tmp_path / "model")) == {"model.safetensors": "old"}
    assert not (tmp_path / ".model.old").exists()


def test_what_a_sealed_folder_lacks(tmp_path):
    folder = folder_with(tmp_path / "checkpoint-3", a_pt="one", b_pt="two")
    assert durable.damage(folder) == "it has no manifest.json: it was not written to its end"
    durable.seal(folder)
    assert durable.sealed_files(folder) == ["a.pt", "b.pt"]
    assert durable.damage(folder) == ""
    (folder / "b.pt").write_text("twp")
    assert durable.damage(folder) == "b.pt is damaged"
    (folder / "b.pt").unlink()
    assert durable.damage(folder) == "b.pt is missing"
    (folder / "manifest.json").write_text('{"a')
    assert durable.damage(folder) == "manifest.json is damaged"


# A run


class Line(PreTrainedModel):
    """The tiniest model: a line."""

    config_class = PretrainedConfig

    def __init__(self):
        super().__init__(PretrainedConfig())
        torch.manual_seed(0)
        self.line = torch.nn.Linear(64, 64)
        self.post_init()

    def forward(self, input_ids, labels=None):
        output = self.line(input_ids.float())
        return {"loss": ((output - labels) ** 2).mean() + 0.01 * torch.nn.functional.dropout(output).mean()}


class Points(Dataset):
    def __len__(self):
        return 100

    def __getitem__(self, index):
        values = torch.randn(64, generator=torch.Generator().manual_seed(index))
        return {"input_ids": values, "labels": values.flip(0)}


def run_trainer(run, **options):
    options = {"max_steps": STEPS, "save_steps": 1, "save_total_limit": 2, "report_to": "none", **options}
    arguments = TrainingArguments(
        str(run), use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False, logging_steps=1, **options
    )
    return RunTrainer(model=Line(), args=arguments, train_dataset=Points())


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The weights of a run that nothing disturbs."""
    run = tmp_path_factory.mktemp("run")
    trainer = run_trainer(run)
    trainer.run()
    assert sorted(path.name for path in run.glob("checkpoint-*")) == ["checkpoint-5", "checkpoint-6"]
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def assert_ends(run, expected):
    trainer = run_trainer(run)
    trainer.run()
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("name", ["optimizer.pt", "model.safetensors", "rng_state.pth", "trainer_state.json"])
@pytest.mark.parametrize("how", ["missing", "damaged"])
def test_a_run_goes_on_from_the_newest_whole_checkpoint_and_says_so(name, how, expected, tmp_path, caplog):
    run_trainer(tmp_path).run()
    file = tmp_path / "checkpoint-6" / name
    if how == "missing":
        file.unlink()
    else:
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    caplog.clear()
    assert last_checkpoint(tmp_path).name == "checkpoint-5"
    assert caplog.messages == [
        f"{file.parent} is not whole ({name} is {how}); the newest whole checkpoint before it is used"
    ]
    assert_ends(tmp_path, expected)
    assert last_checkpoint(tmp_path).name == "checkpoint-6"


def test_without_an_optimizer_a_run_does_not_go_on(tmp_path):
    run_trainer(tmp_path, save_only_model=True).run()
    with pytest.raises(ValueError, match="checkpoint-6 holds no state of the optimizer, as save_only_model leaves it"):
        run_trainer(tmp_path).run()


def test_nothing_old_is_removed_before_the_new_is_whole(tmp_path, monkeypatch, expected):
    """One checkpoint is kept, and the disk is full when the second is written."""
    save = torch.save

    def full(*args, **kwargs):
        if "checkpoint-3" in str(args[1]):
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(*args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        run_trainer(tmp_path, save_total_limit=1).run()
    assert last_checkpoint(tmp_path).name == "checkpoint-2"
    monkeypatch.setattr(torch, "save", save)
    assert_ends(tmp_path, expected)
    assert not (tmp_path / "checkpoint-3").exists()


def test_a_broken_file_of_weights_is_named(tmp_path):
    save_file({"model.x": torch.zeros(9)}, tmp_path / "a.safetensors")
    save_file({"model.y": torch.zeros(9)}, tmp_path / "b.safetensors")
    data = (tmp_path / "b.safetensors").read_bytes()
    (tmp_path / "b.safetensors").write_bytes(data[:-4])
    with pytest.raises(ValueError, match=r"b.safetensors cannot be read .*; expected a whole file of weights"):
        train.read_weights(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="a limit on the size of files stands for the full disk")
@pytest.mark.slow
def test_a_full_disk_of_the_system(expected, tmp_path):
    """The limit is the system's own, so that every way to write fails, in C++ and in Rust as well."""
    run_trainer(tmp_path, save_total_limit=None).run()
    for step in range(3, STEPS + 1):
        shutil.rmtree(tmp_path / f"checkpoint-{step}")
    for limit in (100, 1000, 5000, 17000, 20000):
        if (child := os.fork()) == 0:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            try:
                run_trainer(tmp_path).run()
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
        assert last_checkpoint(tmp_path).name == "checkpoint-2"
    assert_ends(tmp_path, expected)


def train_and_export(run):
    """Everything that a run writes, as a process of its own would."""
    torch.set_num_threads(1)
    trainer = run_trainer(run)
    trainer.run()
    with durable.replaced_folder(run / "model") as new:
        trainer.model.save_pretrained(new)
    durable.write_text(run / "result.json", json.dumps({"numbers": list(range(10000))}))


@pytest.mark.slow
def test_kills_at_twenty_random_points(expected, tmp_path):
    """Training, saving and exporting; after each the last whole state is there, and the end has equal weights."""
    rng, deaths, seconds, rounds = random.Random(0), 0, 2.0, 0
    while deaths < 20:
        rounds += 1
        run = tmp_path / f"run{rounds}"
        while True:
            start = time.monotonic()
            if (child := os.fork()) == 0:
                code = 1
                try:
                    train_and_export(run)
                    code = 0
                finally:
                    os._exit(code)
            time.sleep(rng.uniform(0, seconds))
            os.kill(child, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if code == 0:
                seconds = 0.8 * (time.monotonic() - start)
                break
            assert code == -signal.SIGKILL
            deaths += 1
            check_state(run, expected)
        check_state(run, expected)
        train_and_export(run)  # once more, over what is there
        exported = load_file(run / "model" / "model.safetensors")
        assert all(torch.equal(exported[name], value) for name, value in expected.items())
        assert not list(run.rglob(".*.old"))


def check_state(run, expected):
    """What is there is whole: the checkpoint, the exported folder, the result."""
    checkpoint = last_checkpoint(run)
    if checkpoint is not None:
        assert set(load_file(checkpoint / "model.safetensors")) == set(expected)
        assert torch.load(checkpoint / "optimizer.pt")["state"]
    if durable.recovered(run / "model").exists():
        exported = load_file(run / "model" / "model.safetensors")
        assert all(torch.equal(exported[name], value) for name, value in expected.items())
    if (run / "result.json").exists():
        assert len(json.loads((run / "result.json").read_text())["numbers"]) == 10000
