"""The three stages: they train as a plain loop would, go on after a kill, and start from each other's weights."""

import copy
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import TrainerCallback


ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from training import data, optim, train, trainer  # noqa: E402
from training.durable import seal  # noqa: E402
from training.prepare import TINY  # noqa: E402


pytestmark = pytest.mark.newest

STEPS = 4


class KilledError(RuntimeError):
    """Stands for a kill."""


class KillAfter(TrainerCallback):
    """Saves a checkpoint at a step and dies a step later."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step > self.step:
            raise KilledError
        control.should_save = state.global_step == self.step


@pytest.fixture
def config():
    """Short stages with small batches."""
    config = copy.deepcopy(data.load_config())
    for stage in config["stages"].values():
        stage.update(steps=STEPS, tiles_per_batch=3, grids={"1x1": 1, "2x1": 1})
    return config


@pytest.fixture(autouse=True)
def one_thread():
    """As many threads as before afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def needs_fonts(config):
    try:
        data.Batches(config, "vision", None).batch(0, with_pixels=False)
    except FileNotFoundError as error:
        pytest.skip(str(error))


def stage_trainer(config, stage, run):
    needs_fonts(config)
    return train.StageTrainer(config, stage, train.training_arguments(config, stage, run))


def plain_loop(config, stage, world_size=1):
    """Train without the Trainer: give the masters and the losses of the first process."""
    stages = stage_trainer(config, stage, "unused")
    optimizer, losses = stages.create_optimizer(), []
    peaks = [group["lr"] for group in optimizer.param_groups]
    for step in range(STEPS):
        grads = {name: torch.zeros_like(value) for name, value in optimizer.masters.items()}
        for rank in range(world_size):
            number = step * world_size + rank
            loss = stages.model(**stages.train_dataset[number])["loss"]
            losses += [loss.item()] if rank == 0 else []
            optimizer.zero_grad()
            loss.backward()
            for name, value in optimizer.parameters.items():
                grads[name] += 0 if value.grad is None else value.grad.float() / world_size
        for name, value in optimizer.parameters.items():
            value.grad = grads[name].to(value.dtype)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * optim.rate_at(step, STEPS, config["optimizer"]["warmup_steps"])
        optimizer.step()
    return optimizer.masters, losses


@pytest.mark.parametrize("stage", train.STAGES)
def test_it_trains_as_a_plain_loop_and_goes_on_after_a_kill(stage, config, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "LOG_EVERY_STEPS", 1)
    masters, losses = plain_loop(config, stage)
    killed = stage_trainer(config, stage, tmp_path)
    killed.add_callback(KillAfter(2))
    with pytest.raises(KilledError):
        killed.run()
    # A second kill, in the middle of writing the next checkpoint.
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3" / "trainer_state.json").write_text('{"global_')
    with (tmp_path / trainer.LOG_FILE).open("a") as file:
        file.write('{"step": 3, "loss": 9.0}\n{"step": 3, "lo')
    resumed = stage_trainer(config, stage, tmp_path)
    resumed.run()
    assert resumed.state.global_step == STEPS
    weights = train.read_weights(tmp_path)
    for name, value in masters.items():
        assert torch.equal(weights[name], value), name
    logged = [json.loads(line) for line in (tmp_path / trainer.LOG_FILE).read_text().splitlines()]
    assert [line["step"] for line in logged] == [1, 2, 3, 4]
    assert [line["loss"] for line in logged] == pytest.approx(losses, rel=1e-3)
    assert set(config["stages"][stage]["losses"]) <= set(logged[0])
    assert logged[0]["samples/s"] > 0
    # A finished run stays as it is.
    assert stage_trainer(config, stage, tmp_path).run().global_step == STEPS


@pytest.mark.slow
def test_two_processes_average_their_gradients(config, tmp_path):
    needs_fonts(config)
    config["stages"]["joint"]["oracle_share"] = 0.5  # a process without pictures beside one with them
    script = tmp_path / "two.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import json, sys
            from pathlib import Path
            sys.path.insert(0, {str(ROOT)!r})
            import torch
            from training import train
            config = json.loads({json.dumps(json.dumps(config))})
            arguments = train.training_arguments(config, "joint", Path({str(tmp_path / "run")!r}))
            assert arguments.world_size == 2
            torch.set_num_threads(1)
            trainer = train.StageTrainer(config, "joint", arguments)
            trainer.run()
            torch.save(trainer.masters, Path({str(tmp_path)!r}) / f"masters{{arguments.process_index}}.pt")
            trainer.accelerator.end_training()
            """
        )
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(script)]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300)
    first, second = (torch.load(tmp_path / f"masters{rank}.pt") for rank in range(2))
    masters, _ = plain_loop(config, "joint", world_size=2)
    for name, value in masters.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, atol=0, rtol=0)


def test_workers_draw_the_same_batches(config, tmp_path):
    for workers in (0, 1):
        stages = stage_trainer(config, "vision", tmp_path / str(workers))
        stages.args.dataloader_num_workers = workers
        stages.run()
    alone, helped = (train.read_weights(tmp_path / name) for name in "01")
    assert all(torch.equal(value, helped[name]) for name, value in alone.items())


def test_joint_starts_from_the_other_stages(config, tmp_path, caplog):
    model = train.StageModel(config, "joint")
    states = {name: value.detach().clone() for name, value in model.weights().items()}
    for before, start in (("language", 1.0), ("vision", 2.0)):
        filled = {name: torch.full_like(value, start) for name, value in states.items()}
        (tmp_path / before).mkdir()
        torch.save({"weights": filled}, tmp_path / before / "last.pt")
    weights = train.initial_weights("joint", tmp_path, None)
    model.take_over(weights)
    named = model.weights()
    for name, value in (
        ("language_model.output.weight", 1.0),
        ("heads.spelling_reader.weight", 1.0),
        ("heads.finding_reader.weight", 1.0),
        ("mlp1.1.weight", 2.0),
        ("heads.patch_reader.weight", 2.0),
    ):
        assert (named[name] == value).all(), name


def test_joint_says_when_a_stage_before_it_is_unfinished(config, tmp_path, caplog):
    states = {name: value.detach().clone() for name, value in train.StageModel(config, "joint").weights().items()}
    for before, steps in (("language", 3), ("vision", 4)):
        checkpoint = tmp_path / before / "checkpoint-3"
        checkpoint.mkdir(parents=True)
        save_file(states, checkpoint / train.WEIGHTS_FILE)
        (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": 3, "max_steps": steps}))
        seal(checkpoint)
    train.initial_weights("joint", tmp_path, None)
    assert [record.message for record in caplog.records] == [f"{tmp_path / 'vision'} has made 3 of its 4 steps"]


def test_a_run_goes_on_with_its_settings_alone(config, tmp_path):
    train.keep_settings(tmp_path / "run", config, "joint")
    train.keep_settings(tmp_path / "run", config, "joint")
    config["stages"]["vision"]["rate"] = 0.123  # another stage's
    train.keep_settings(tmp_path / "run", config, "joint")
    config["stages"]["joint"]["losses"]["pull"] = 0.123
    problem = r"run was begun with stages\.joint\.losses\.pull = 0\.2, but now it is 0\.123\. Go on with the same"
    with pytest.raises(ValueError, match=problem):
        train.keep_settings(tmp_path / "run", config, "joint")


def test_heads_of_another_shape_start_anew_and_nothing_else_may_differ(config, caplog):
    model = train.StageModel(config, "joint")
    states = {name: value.detach().clone() + 1 for name, value in model.weights().items()}
    states["heads.cell_reader.weight"] = torch.zeros(3, 192)
    states["heads.gone"] = torch.zeros(3)
    del states["heads.patch_norm.bias"]
    before = {name: value.detach().clone() for name, value in model.weights().items()}
    with caplog.at_level("INFO", "training.train"):
        model.take_over(states)
    anew = {"heads.cell_reader.weight", "heads.gone", "heads.patch_norm.bias"}
    assert {message.split()[0] for message in caplog.messages} == anew
    for name, value in model.weights().items():
        assert torch.equal(value, before[name] + (name not in anew)), name
    states["mlp1.1.weight"] = torch.zeros(2, 2)
    with pytest.raises(ValueError, match=r"1 weights do not fit the model by name and shape; .* 'mlp1.1.weight'"):
        model.take_over(states)


def test_weights_are_read_from_folders_and_files(tmp_path):
    assert "mlp1.1.weight" in train.read_weights(TINY)
    weights = {"model.mlp1.1.weight": torch.ones(2), "heads.x": torch.ones(3), "codes.kinds": torch.ones(1)}
    save_file(weights, tmp_path / "some.safetensors")
    assert set(train.read_weights(tmp_path / "some.safetensors")) == {"mlp1.1.weight", "heads.x"}
    with pytest.raises(FileNotFoundError, match="nowhere holds no weights; expected a run, a checkpoint folder"):
        train.read_weights(tmp_path / "nowhere")


def test_masters_keep_what_bf16_cannot(config):
    linear = torch.nn.Linear(4, 4)
    optimizer = optim.MasterOptimizer(dict(linear.named_parameters()), config["optimizer"], 1e-4)
    exact = linear.weight.detach().clone()
    linear.bfloat16()
    linear(torch.ones(1, 4, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    assert linear.weight.dtype == torch.bfloat16
    assert torch.equal(linear.weight, optimizer.masters["weight"].bfloat16())
    assert 0 < (optimizer.masters["weight"] - exact).abs().max() < 1e-5
    other = copy.deepcopy(linear)
    copied = optim.MasterOptimizer(dict(other.named_parameters()), config["optimizer"], 1.0)
    copied.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for some, its in ((linear, optimizer), (other, copied)):
        some.weight.grad = torch.ones_like(some.weight)
        its.step()
    assert torch.equal(optimizer.masters["weight"], copied.masters["weight"])


def test_checkpoints_by_the_clock(config, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "SAVE_EVERY_SECONDS", 0)
    stage_trainer(config, "vision", tmp_path).run()
    saved = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
    assert saved == [f"checkpoint-{STEPS - 1}", f"checkpoint-{STEPS}"]  # the others gave way


@pytest.mark.slow
def test_all_stages_from_the_command_line_learn(config, tmp_path, monkeypatch):
    for stage in config["stages"].values():
        stage.update(tiles_per_batch=6, grids={"1x1": 1}, rate=1.0)
    config["optimizer"]["warmup_steps"] = 2
    monkeypatch.setattr(train, "load_config", lambda: config)
    monkeypatch.setattr(train, "LOG_EVERY_STEPS", 5)
    stage_trainer(config, "vision", tmp_path / "fonts")
    for stage in train.STAGES:
        monkeypatch.setattr(sys, "argv", ["train", stage, "--runs", str(tmp_path), "--steps", "25"])
        train.main()
        lines = [json.loads(line) for line in (tmp_path / stage / trainer.LOG_FILE).read_text().splitlines()]
        assert lines[-1]["step"] == 25
        assert lines[-1]["loss"] < lines[0]["loss"], stage


def test_a_stage_may_say_what_is_trained(config):
    config["stages"]["joint"]["trained"] = ["language_model", "heads.spelling"]
    trained = {name for name, value in train.StageModel(config, "joint").weights().items() if value.requires_grad}
    assert {name.split(".")[0] for name in trained} == {"language_model", "heads"}
    assert all("spelling" in name for name in trained if name.startswith("heads"))


def test_what_is_trained_must_exist(config):
    config["stages"]["joint"]["trained"] = ["language_model", "visual_model"]
    with pytest.raises(ValueError, match=r"names \['visual_model'\], which no weight begins with"):
        train.StageModel(config, "joint")
