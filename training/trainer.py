"""What all training here shares: Transformers' Trainer, with a log file, one progress line and runs that go on.

A run is a folder: the Trainer's checkpoints in it, and `log.jsonl`. Started again, a run goes on from its last whole
checkpoint: one whose files are all there, as `manifest.json` in it says.
"""

import json
import logging
import math
import shutil
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast
from torch import nn
from tqdm import tqdm
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import TrainOutput

from training.durable import damage, seal, sealed_files, write_text


logger = logging.getLogger(__name__)
LOG_FILE, STATE_FILE = "log.jsonl", "trainer_state.json"
PREFIX = "checkpoint-"
# What the names of a checkpoint's files or folders begin with that hold the optimizer's state, DeepSpeed's included.
OPTIMIZER_FILES = ("optimizer", "global_step")


def checkpoints(run: Path) -> list[Path]:
    """Return the checkpoints of a run, the newest first."""
    found = [folder for folder in run.glob(f"{PREFIX}*") if folder.name.removeprefix(PREFIX).isdecimal()]
    return sorted(found, key=lambda folder: int(folder.name.removeprefix(PREFIX)), reverse=True)


def last_checkpoint(run: Path) -> Path | None:
    """Find the newest whole checkpoint of a run, for a kill may come at any moment; say which others are not."""
    for checkpoint in checkpoints(run):
        problem = damage(checkpoint)
        if not problem:
            return checkpoint
        logger.warning("%s is not whole (%s); the newest whole checkpoint before it is used", checkpoint, problem)
    return None


class Means:
    """Means of what was measured since the last look, and samples per second."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.values, self.samples, self.since = defaultdict(list), 0, time.perf_counter()

    def add(self, samples: int, values: dict[str, list[float]]) -> None:
        """Take in what one batch gave."""
        self.samples += samples
        for name, several in values.items():
            self.values[name] += several

    def take(self) -> dict[str, float]:
        """Give the means by name and start anew."""
        means = {name: sum(values) / len(values) for name, values in sorted(self.values.items())}
        means["samples/s"] = self.samples / (time.perf_counter() - self.since)
        self.reset()
        return means


class LogFile(TrainerCallback):
    """One JSON object per line in the run's log file, and the same numbers behind the progress bar."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take back the lines of steps that a kill undid, and show the bar."""
        self.file = Path(args.output_dir) / LOG_FILE
        if state.is_world_process_zero and self.file.exists():
            lines = self.file.read_text("utf-8").splitlines(keepends=True)
            write_text(self.file, "".join(line for line in lines if _step_of(line) <= state.global_step))
        hidden = args.disable_tqdm or not state.is_world_process_zero
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, disable=hidden, mininterval=5)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Move the bar."""
        self.bar.update()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write what the Trainer logs, except for the summary at the end."""
        if not state.is_world_process_zero or "train_runtime" in logs:
            return
        logs = {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in logs.items()}
        self.bar.set_postfix(logs)
        with self.file.open("a") as file:
            file.write(json.dumps({"step": state.global_step} | logs) + "\n")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Finish the bar."""
        self.bar.close()


def _step_of(line: str) -> float:
    """Give the step of a line of the log; one that a kill cut short is of no step."""
    try:
        return json.loads(line)["step"]
    except ValueError:
        return math.inf


class TimedCheckpoints(TrainerCallback):
    """Asks for a checkpoint when the last one is old.

    Args:
        seconds: How old.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self.saved = seconds, time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look at the clock of the first process, for all processes must save at the same step."""
        is_old = torch.tensor([time.monotonic() - self.saved > self.seconds], dtype=torch.int, device=args.device)
        control.should_save |= bool(broadcast(is_old).item())

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Start the clock anew."""
        self.saved = time.monotonic()


class RunTrainer(Trainer):
    """Transformers' Trainer for one run; its arguments are the Trainer's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for callback in (ProgressCallback, PrinterCallback):
            self.remove_callback(callback)
        self.add_callback(LogFile)
        self.means = Means()

    def run(self) -> TrainOutput:
        """Train to the end, from the last whole checkpoint of the run where there is one.

        Raises:
            ValueError: If that checkpoint holds no state of the optimizer: training would go on to other weights.
        """
        checkpoint = last_checkpoint(Path(self.args.output_dir))
        if checkpoint is not None and not any(name.startswith(OPTIMIZER_FILES) for name in sealed_files(checkpoint)):
            raise ValueError(
                f"{checkpoint} holds no state of the optimizer, as save_only_model leaves it out; a run cannot go on "
                "from it to the same weights: give another output_dir, and this checkpoint as the model."
            )
        self.means.reset()
        return self.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint, seal it when all processes have written their parts, and then remove the oldest."""
        checkpoint = Path(self.args.output_dir) / f"{PREFIX}{self.state.global_step}"
        if self._prepare(checkpoint):
            return
        limit, self.args.save_total_limit = self.args.save_total_limit, None  # removing is done here
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            seal(checkpoint)
            kept = [str(checkpoint), str(self.state.best_model_checkpoint)]
            olds = checkpoints(Path(self.args.output_dir))[limit:] if limit else []
            for old in olds:
                if str(old) not in kept:
                    shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def _prepare(self, checkpoint: Path) -> bool:
        """Remove what a kill left of a checkpoint; say whether it is there and whole."""
        is_whole = checkpoint.exists() and not damage(checkpoint)
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero() and not is_whole:
            shutil.rmtree(checkpoint, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        return is_whole

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """Compute the loss as the Trainer does, and keep what else is measured while training."""
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        if model.training:
            self.measure(inputs, outputs)
        return (loss, outputs) if return_outputs else loss

    def measure(self, inputs: dict[str, Any], outputs: Any) -> None:
        """Count samples; subclasses measure more.

        Args:
            inputs: The batch.
            outputs: What the model gave for it.
        """
        self.means.add(len(inputs["input_ids"]), {})

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log what the Trainer logs, and with a loss the means of what was measured."""
        super().log(logs | self.means.take() if "loss" in logs else logs, start_time)
