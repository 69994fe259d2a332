"""Trains the embedded checkpoint, one stage per call.

`language` teaches the language model on oracle tokens, `vision` the vision encoder and the projector: run both at the
same time, one core each. They are stage 1 of the paper (section 4.1), with the language model's apprenticeship beside
it. `joint` trains everything together, stage 2. A stage that was stopped continues from its last checkpoint to the
same weights. The commands are in `training/README.md`.
"""

import argparse
import json
import logging
import os
import random
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from tqdm import tqdm
from transformers import AutoConfig, AutoModel

from training.data import Batch, Batches, PromptEncoder, load_config
from training.heads import SPELLING_LAYER, TrainingHeads, pull_loss
from training.optim import MasterOptimizer, rate_at
from training.oracle import OracleCodes
from training.prepare import ROOT, TINY


logger = logging.getLogger(__name__)
STAGES = ("language", "vision", "joint")
TRAINED = {
    "language": ("language_model", "heads.spelling"),
    "vision": ("vision_model", "mlp1", "heads"),
    "joint": ("language_model", "vision_model", "mlp1", "heads"),
}
SAVE_EVERY_SECONDS = 90
LOG_EVERY_STEPS = 50


def build_model(seed: int, folder: Path = TINY) -> nn.Module:
    """Make an untrained model from a folder's config.json, in fp32.

    Args:
        seed: Seed of the weights.
        folder: A checkpoint folder without weights, inside or beside the package.

    Returns:
        The model, with weights fit for training from scratch.
    """
    torch.manual_seed(seed)
    if folder.parent == ROOT:
        config = AutoConfig.from_pretrained(ROOT, subfolder=folder.name, trust_remote_code=True)
    else:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    config.torch_dtype = None
    model = AutoModel.from_config(config, trust_remote_code=True, dtype=torch.float32)
    _initialise(model)
    return model


@torch.no_grad()
def _initialise(model: nn.Module) -> None:
    """Replace the published initialisation, which is meant to be overwritten by trained weights."""
    depth = {
        "vision_model": model.config.vision_config.num_hidden_layers,
        "language_model": model.config.llm_config.num_hidden_layers,
    }
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.weight.normal_(std=module.in_features**-0.5)
            if name.endswith(("attn.proj", "fc2", "attention.wo", "feed_forward.w2")):
                # Each layer adds two branches: keep the sum of all of them near the size of the input.
                module.weight.mul_((2 * depth[name.split(".")[0]]) ** -0.5)
    model.language_model.model.tok_embeddings.weight.normal_(std=0.3)
    model.language_model.output.weight.normal_(std=0.02)
    filters = model.vision_model.embeddings.patch_embedding.weight
    filters.normal_(std=filters[0].numel() ** -0.5)
    filters.sub_(filters.mean(dim=(1, 2, 3), keepdim=True))  # blind to plain grey, as large white areas dominate


class Trainer:
    """Everything one stage needs: model, heads, codes, batches, optimizer.

    Args:
        config: The training configuration.
        stage: One of `STAGES`.
        folder: Checkpoint folder without weights (config and tokenizer).
    """

    def __init__(self, config: dict[str, Any], stage: str, folder: Path = TINY) -> None:
        self.config, self.stage, self.settings = config, stage, config["stages"][stage]
        self.model = build_model(config["seed"], folder)
        hidden_size = self.model.config.llm_config.hidden_size
        cells = round(self.model.num_image_token**0.5)
        self.codes = OracleCodes(hidden_size, config["seed"], cells).bfloat16()
        factor = round(1 / config["model"]["downsample_ratio"])
        self.heads = TrainingHeads(self.model.config.vision_config.hidden_size, hidden_size, factor)
        encoder = None
        if stage != "vision":
            encoder = PromptEncoder(folder / "tokenizer.model", self.model.num_image_token)
        self.batches = Batches(config, stage, encoder)
        # On CPUs the fused kernel's backward pass is slower than plain products.
        self.model.vision_model.set_attn_implementation("eager")
        self.shuffled: torch.Tensor | None = None
        self.model.mlp1.register_forward_pre_hook(self._keep_projector_input)
        self.model.train()
        self.step = 0

    def _keep_projector_input(self, module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        self.shuffled = inputs[0]

    def start(self, states: dict[str, torch.Tensor]) -> None:
        """Take over weights of earlier stages and set up the optimizer.

        Args:
            states: Weights by name, those of the heads prefixed "heads."; names that are missing keep their values.
        """
        named = dict(self.model.named_parameters())
        named |= {f"heads.{name}": value for name, value in self.heads.named_parameters()}
        with torch.no_grad():
            for name, value in states.items():
                if name.startswith("heads.") and named[name].shape != value.shape:
                    logger.info("%s starts anew: it was %s, is %s", name, list(value.shape), list(named[name].shape))
                    continue
                named[name].copy_(value)
        trained = {name: value for name, value in named.items() if name.startswith(TRAINED[self.stage])}
        for name, value in named.items():
            value.requires_grad_(name in trained)
        # Masters are taken from fp32 weights before those become bf16.
        self.optimizer = MasterOptimizer(trained, self.config["optimizer"], self.settings["rate"])
        self.model.bfloat16()
        self.heads.bfloat16()

    def losses(self, batch: Batch, number: int) -> tuple[dict[str, torch.Tensor], dict[str, list[bool]]]:
        """Compute the losses that this batch and stage have.

        Args:
            batch: The batch.
            number: Its number, seed of the noise on oracle tokens.

        Returns:
            Losses by name, and for each task whether each answer would be exactly right.
        """
        found, tokens = {}, None
        if batch.labels is not None:
            oracle = self.codes(batch.labels)  # (tiles, cells, hidden)
            if batch.pixel_values is None:
                generator = torch.Generator().manual_seed(number)
                noise = torch.randn(oracle.shape, generator=generator, dtype=oracle.dtype)
                tokens = oracle + self.settings["noise"] * noise
            else:
                tokens = self.model.get_image_features(batch.pixel_values)
                found["pull"] = pull_loss(tokens, oracle, batch.labels)
                found["codes"] = self.heads.code_loss(tokens, batch.labels)
                found["dense"] = self.heads.dense_loss(self.shuffled, batch.labels)
        right = {}
        if batch.input_ids is not None:
            output = self.model(
                input_ids=batch.input_ids,
                # Without a mask, gaps between positions would pass for borders between packed texts.
                attention_mask=torch.ones_like(batch.input_ids),
                position_ids=batch.position_ids,
                visual_features=tokens,
                labels=batch.input_ids,
                loss_weight=batch.weights,
                use_cache=False,
                output_hidden_states=True,
            )
            if batch.labels is not None:
                states = output.hidden_states[SPELLING_LAYER][batch.input_ids == self.model.config.image_token_id]
                found["spelling"] = self.heads.spelling_loss(states, batch.labels)
            found["language" if batch.pixel_values is not None else "oracle_language"] = output.loss
            right = _exact_answers(output.logits, batch)
        return found, right

    def backward(self, number: int) -> tuple[dict[str, float], dict[str, list[bool]], int]:
        """Draw batch `number`, add its gradients, and give its losses, exact answers and size."""
        with_pixels = random.Random(f"pixels {number}").random() >= self.settings.get("oracle_share", 0)
        batch = self.batches.batch(number, with_pixels and self.stage != "language")
        found, right = self.losses(batch, number)
        weights = {"oracle_language": 1.0} | self.settings["losses"]
        sum(weights[name] * loss for name, loss in found.items()).backward()
        return {name: loss.item() for name, loss in found.items()}, right, batch.size

    def state_dict(self) -> dict[str, Any]:
        """Give everything that exact continuation needs."""
        weights = {name: value.detach().float() for name, value in self.model.named_parameters()}
        weights |= {f"heads.{name}": value.detach().float() for name, value in self.heads.named_parameters()}
        # The masters are finer than the bf16 weights that were rounded from them.
        weights |= self.optimizer.masters
        return {"step": self.step, "weights": weights, "optimizer": self.optimizer.state_dict()}


def _exact_answers(logits: torch.Tensor, batch: Batch) -> dict[str, list[bool]]:
    """Judge each answer by the most likely token at each of its positions, given the right ones before it."""
    right = defaultdict(list)
    best = logits.detach()[:, :-1].argmax(-1)  # (batch, length - 1): position i predicts token i + 1
    hits = best == batch.input_ids[:, 1:]
    for task, row, span in batch.answers:
        right[task].append(bool(hits[row, span.start - 1 : span.stop - 1].all()))
    return right


class Progress:
    """Running means for the progress bar and the log file.

    Args:
        file: Receives one JSON object per line.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.values, self.samples, self.since = defaultdict(list), 0, time.perf_counter()

    def add(self, losses: dict[str, float], right: dict[str, list[bool]], samples: int) -> None:
        """Take in one batch."""
        for name, value in losses.items():
            self.values[name].append(value)
        for task, hits in right.items():
            self.values[f"exact {task}"] += hits
        self.samples += samples

    def flush(self, step: int) -> dict[str, float]:
        """Write the means to the log file, give them, and start anew."""
        means = {name: round(sum(values) / len(values), 4) for name, values in sorted(self.values.items())}
        means["samples/s"] = round(self.samples / (time.perf_counter() - self.since), 1)
        with self.file.open("a") as file:
            file.write(json.dumps({"step": step} | means) + "\n")
        self.reset()
        return means


def _world() -> tuple[int, int]:
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def _average_gradients(parameters: dict[str, nn.Parameter], world_size: int) -> None:
    """Average gradients over the processes; a process whose batch had no picture brings zeros."""
    for value in parameters.values():
        if value.grad is None:
            value.grad = torch.zeros_like(value)
    flat = torch.cat([value.grad.float().flatten() for value in parameters.values()])
    dist.all_reduce(flat)
    flat /= world_size
    for value, part in zip(parameters.values(), flat.split([v.numel() for v in parameters.values()]), strict=True):
        value.grad.copy_(part.view_as(value))


def _save(state: dict[str, Any], file: Path) -> None:
    """Write a checkpoint so that a kill at any moment leaves the old or the new one whole."""
    torch.save(state, file.with_suffix(".part"))
    file.with_suffix(".part").replace(file)


def _initial_weights(stage: str, runs: Path, start: Path | None) -> dict[str, torch.Tensor]:
    """Collect what a stage starts from: nothing, the stages before it, or a checkpoint named by the caller."""
    if start is not None:
        return torch.load(start)["weights"]
    if stage != "joint":
        return {}
    language, vision = (torch.load(runs / before / "last.pt")["weights"] for before in ("language", "vision"))
    chosen = {name: value for name, value in vision.items() if not name.startswith("language_model")}
    return chosen | {name: value for name, value in language.items() if name.startswith(TRAINED["language"])}


def train(trainer: Trainer, folder: Path, initial: dict[str, torch.Tensor]) -> None:
    """Run a stage to its end.

    Args:
        trainer: The stage.
        folder: Receives `last.pt` and `log.jsonl`; a `last.pt` found there is continued.
        initial: Weights to start from.
    """
    rank, world_size = _world()
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "last.pt"
    trainer.start(initial)
    if file.exists():
        state = torch.load(file)
        trainer.optimizer.load_state_dict(state["optimizer"])
        trainer.step = state["step"]
    steps, warmup = trainer.settings["steps"], trainer.config["optimizer"]["warmup_steps"]
    progress, saved = Progress(folder / "log.jsonl"), time.monotonic()
    bar = tqdm(total=steps, initial=trainer.step, desc=trainer.stage, disable=rank > 0, mininterval=5)
    while trainer.step < steps:
        progress.add(*trainer.backward(trainer.step * world_size + rank))
        if world_size > 1:
            _average_gradients(trainer.optimizer.parameters, world_size)
        trainer.optimizer.step(rate_at(trainer.step, steps, warmup))
        trainer.step += 1
        bar.update()
        if rank:
            continue
        if trainer.step % LOG_EVERY_STEPS == 0:
            bar.set_postfix(progress.flush(trainer.step))
        if time.monotonic() - saved > SAVE_EVERY_SECONDS or trainer.step == steps:
            _save(trainer.state_dict(), file)
            saved = time.monotonic()
    bar.close()


def main() -> None:
    """Train one stage from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--runs", type=Path, required=True, help="folder of checkpoints and logs, one per stage")
    parser.add_argument("--name", help="name of this run; default: the stage")
    parser.add_argument("--weights", type=Path, help="checkpoint (last.pt) whose weights to start from")
    parser.add_argument("--steps", type=int, help="overrides the configured number of steps")
    parser.add_argument("--rate", type=float, help="overrides the configured share of the peak learning rates")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads per process")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    torch.set_num_threads(arguments.threads)
    if _world()[1] > 1:
        dist.init_process_group("gloo")
    config = load_config()
    for name in ("steps", "rate"):
        if getattr(arguments, name):
            config["stages"][arguments.stage][name] = getattr(arguments, name)
    trainer = Trainer(config, arguments.stage)
    logger.info("%.2f million parameters", sum(value.numel() for value in trainer.model.parameters()) / 1e6)
    initial = _initial_weights(arguments.stage, arguments.runs, arguments.weights)
    train(trainer, arguments.runs / (arguments.name or arguments.stage), initial)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
