"""Trains the embedded checkpoint, one stage per call.

`language` teaches the language model on oracle tokens, `vision` the vision encoder and the projector: run both at the
same time, one core each. They are stage 1 of the paper (section 4.1), with the language model's apprenticeship beside
it. `joint` trains everything together, stage 2. A stage that was stopped continues from its last checkpoint to the
same weights. The commands are in `training/README.md`.
"""

import argparse
import json
import logging
import random
from collections import defaultdict
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset
from transformers import AutoConfig, AutoModel, TrainingArguments

from training.attention import use_plain_attention
from training.data import Batch, Batches, PromptEncoder, load_config
from training.durable import write_text
from training.folders import located
from training.heads import FINDING_LAYER, SPELLING_LAYER, TrainingHeads, pull_loss
from training.optim import MasterOptimizer, rate_at
from training.oracle import OracleCodes
from training.prepare import TINY
from training.tiles import CHARACTERS
from training.trainer import RunTrainer, TimedCheckpoints, last_checkpoint


logger = logging.getLogger(__name__)
STAGES = ("language", "vision", "joint")
TRAINED = {
    "language": ("language_model", "heads.spelling", "heads.finding"),
    "vision": ("vision_model", "mlp1", "heads"),
    "joint": ("language_model", "vision_model", "mlp1", "heads"),
}
SAVE_EVERY_SECONDS, SAVE_EVERY_STEPS = 90, 500
LOG_EVERY_STEPS = 50
WEIGHTS_FILE, SETTINGS_FILE = "model.safetensors", "settings.json"


def build_model(seed: int, folder: Path = TINY) -> nn.Module:
    """Make an untrained model from a folder's config.json, in fp32.

    Args:
        seed: Seed of the weights.
        folder: A checkpoint folder without weights, inside or beside the package.

    Returns:
        The model, with weights fit for training from scratch.
    """
    torch.manual_seed(seed)
    place, options = located(folder)
    config = AutoConfig.from_pretrained(place, **options)
    config.dtype = None
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


class StageModel(nn.Module):
    """What one stage trains, the model and its heads; the forward pass gives the loss of a batch.

    Args:
        config: The training configuration.
        stage: One of `STAGES`.
        folder: Checkpoint folder without weights (config and tokenizer).
    """

    def __init__(self, config: dict[str, Any], stage: str, folder: Path = TINY) -> None:
        super().__init__()
        self.stage, self.settings = stage, config["stages"][stage]
        self.model = build_model(config["seed"], folder)
        hidden_size = self.model.config.llm_config.hidden_size
        cells = round(self.model.num_image_token**0.5)
        self.codes = OracleCodes(hidden_size, config["seed"], cells).bfloat16()
        self._start_characters_as_their_codes(PromptEncoder(folder / "tokenizer.model", cells**2))
        factor = round(1 / config["model"]["downsample_ratio"])
        self.heads = TrainingHeads(self.model.config.vision_config.hidden_size, hidden_size, factor)
        use_plain_attention(self.model)
        self.shuffled: torch.Tensor | None = None
        self.model.mlp1.register_forward_pre_hook(self._keep_projector_input)
        trained, weights = tuple(self.settings.get("trained", TRAINED[stage])), self.weights()
        unknown = [part for part in trained if not any(name.startswith(part) for name in weights)]
        if unknown:
            raise ValueError(f'"trained" of stage {stage} names {unknown}, which no weight begins with; see TRAINED.')
        for name, value in weights.items():
            value.requires_grad_(name.startswith(trained))

    @torch.no_grad()
    def _start_characters_as_their_codes(self, encoder: PromptEncoder) -> None:
        """Let reading be copying: one map takes all characters of a token to words, instead of one by one."""
        ids, codes = encoder.spell(CHARACTERS), self.codes.spelling
        for table in (self.model.language_model.model.tok_embeddings, self.model.language_model.output):
            table.weight[ids] = codes * table.weight[ids].norm(dim=-1, keepdim=True)

    def _keep_projector_input(self, module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        self.shuffled = inputs[0]

    def weights(self) -> dict[str, nn.Parameter]:
        """Give the parameters by their names in the checkpoint, those of the heads prefixed "heads."."""
        return dict(self.model.named_parameters()) | {
            f"heads.{name}": value for name, value in self.heads.named_parameters()
        }

    @torch.no_grad()
    def take_over(self, states: dict[str, torch.Tensor]) -> None:
        """Take over the weights of an earlier stage or run.

        Args:
            states: Weights by name, as `weights` names them, or none at all. Heads that are missing or have another
                shape start anew.

        Raises:
            ValueError: If the model's own weights differ in names or shapes.
        """
        if not states:
            return
        named = self.weights()
        fitting = {name for name, value in states.items() if name in named and value.shape == named[name].shape}
        differing = sorted((named.keys() | states.keys()) - fitting)
        wrong = [name for name in differing if not name.startswith("heads.")]
        if wrong:
            raise ValueError(
                f"{len(wrong)} weights do not fit the model by name and shape; the first is {wrong[0]!r}. "
                "Start from a checkpoint of the model that training/config.json describes."
            )
        for name in differing:
            logger.info("%s starts anew: the checkpoint has none of this shape", name)
        for name in fitting:
            named[name].copy_(states[name])

    def forward(self, number: int, batch: dict[str, Any]) -> dict[str, Any]:
        """Compute the weighted sum of the losses that a batch has in this stage.

        Args:
            number: The batch's number, seed of the noise on oracle tokens.
            batch: The fields of a `Batch`.

        Returns:
            `loss`; `losses` by name; `right`, for each task whether each answer would be exactly right.
        """
        found, right = self.losses(Batch(**batch), number)
        weights = {"oracle_language": 1.0} | self.settings["losses"]
        loss = sum(weights[name] * value for name, value in found.items())
        return {"loss": loss, "losses": {name: value.detach() for name, value in found.items()}, "right": right}

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
                tokens = oracle + self.settings["noise"] * noise.to(oracle.device)
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
            if len(batch.named):
                rows, positions, *_ = batch.named.T
                states = output.hidden_states[FINDING_LAYER][rows, positions]
                found["finding"] = self.heads.finding_loss(states, batch.named[:, 2:])
            found["language" if batch.pixel_values is not None else "oracle_language"] = output.loss
            right = _exact_answers(output.logits, batch)
        return found, right


def _exact_answers(logits: torch.Tensor, batch: Batch) -> dict[str, list[bool]]:
    """Judge each answer by the most likely token at each of its positions, given the right ones before it."""
    right = defaultdict(list)
    best = logits.detach()[:, :-1].argmax(-1)  # (batch, length - 1): position i predicts token i + 1
    hits = best == batch.input_ids[:, 1:]
    for task, row, span in batch.answers:
        right[task].append(bool(hits[row, span.start - 1 : span.stop - 1].all()))
    return right


class NumberedBatches(Dataset):
    """The batches of a stage by number: everything about a batch follows from its number.

    Args:
        batches: Draws them.
        count: How many there are.
        oracle_share: Share of the batches that bring oracle tokens instead of pictures.
    """

    def __init__(self, batches: Batches, count: int, oracle_share: float) -> None:
        self.batches, self.count, self.oracle_share = batches, count, oracle_share

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> dict[str, Any]:
        with_pixels = random.Random(f"pixels {number}").random() >= self.oracle_share
        batch = self.batches.batch(number, with_pixels)
        return {"number": number, "batch": vars(batch)}


class StageTrainer(RunTrainer):
    """Trains one stage.

    Args:
        config: The training configuration.
        stage: One of `STAGES`.
        arguments: See `training_arguments`.
        folder: Checkpoint folder without weights (config and tokenizer).
    """

    def __init__(self, config: dict[str, Any], stage: str, arguments: TrainingArguments, folder: Path = TINY) -> None:
        self.config, self.settings = config, config["stages"][stage]
        self.masters: dict[str, torch.Tensor] = {}
        model = StageModel(config, stage, folder)
        tokenizer = folder / "tokenizer.model"
        encoder = None if stage == "vision" else PromptEncoder(tokenizer, model.model.num_image_token)
        batches = Batches(config, stage, encoder)
        oracle_share = 1 if stage == "language" else self.settings.get("oracle_share", 0)
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=NumberedBatches(batches, arguments.max_steps * arguments.world_size, oracle_share),
            data_collator=itemgetter(0),  # an item is a whole batch
            callbacks=[TimedCheckpoints(SAVE_EVERY_SECONDS)],
        )

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the optimizer; from here on the model computes in bf16."""
        trained = {name: value for name, value in self.model.weights().items() if value.requires_grad}
        # Masters are taken from fp32 weights before those become bf16.
        self.optimizer = MasterOptimizer(trained, self.config["optimizer"], self.settings["rate"])
        self.masters = self.optimizer.masters
        self.model.bfloat16()
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Make the schedule of the learning rates."""
        warmup = self.config["optimizer"]["warmup_steps"]
        self.lr_scheduler = LambdaLR(self.optimizer, partial(rate_at, steps=num_training_steps, warmup=warmup))
        return self.lr_scheduler

    def measure(self, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
        """Keep every loss, how many answers were exactly right, and the size of the batch."""
        losses = {name: [value.item()] for name, value in outputs["losses"].items()}
        right = {f"exact {task}": hits for task, hits in outputs["right"].items()}
        self.means.add(inputs["batch"]["size"], losses | right)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the weights; the masters are finer than the bf16 weights that were rounded from them."""
        if not self.args.should_save:
            return
        masters = {_inner_name(name): value for name, value in self.masters.items()}
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.model.state_dict() | masters, folder / WEIGHTS_FILE)


def _inner_name(name: str) -> str:
    """Give the name of a weight within `StageModel`."""
    return name if name.startswith("heads.") else f"model.{name}"


def training_arguments(config: dict[str, Any], stage: str, run: Path, workers: int = 0) -> TrainingArguments:
    """Say in the Trainer's words what the configuration says; this starts the processes' group.

    Args:
        config: The training configuration.
        stage: One of `STAGES`.
        run: The run's folder.
        workers: Processes that draw batches ahead, for each process that trains; 0 draws in the latter.

    Returns:
        The arguments.
    """
    return TrainingArguments(
        output_dir=str(run),
        max_steps=config["stages"][stage]["steps"],
        per_device_train_batch_size=1,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        dataloader_num_workers=workers,
        logging_steps=LOG_EVERY_STEPS,
        logging_nan_inf_filter=False,
        save_steps=SAVE_EVERY_STEPS,
        save_total_limit=2,
        dataloader_pin_memory=False,
        max_grad_norm=0,  # the optimizer clips, in fp32
        ddp_find_unused_parameters=True,  # a batch may have no picture, or no answer
        use_cpu=not torch.accelerator.is_available(),  # several processes on CPUs are several only when told so
        report_to="none",
        seed=config["seed"],
    )


def read_weights(place: Path) -> dict[str, torch.Tensor]:
    """Read weights by name, those of the training heads prefixed "heads.".

    Args:
        place: A run's folder, for its last checkpoint; a folder with safetensors; or a file, safetensors or `.pt`.

    Returns:
        The weights.

    Raises:
        FileNotFoundError: If there are none.
        ValueError: If a file is damaged.
    """
    files = [place]
    if place.is_dir():
        folder = last_checkpoint(place) or place
        files = sorted(folder.glob("*.safetensors")) or list(folder.glob("last.pt"))
    if not files or not files[0].exists():
        raise FileNotFoundError(f"{place} holds no weights; expected a run, a checkpoint folder or a file of weights.")
    weights = {}
    for file in files:
        weights |= _read_file(file)
    return {name.removeprefix("model."): value for name, value in weights.items() if not name.startswith("codes.")}


def _read_file(file: Path) -> dict[str, torch.Tensor]:
    try:
        return torch.load(file)["weights"] if file.suffix == ".pt" else load_file(file)
    except Exception as error:  # the readers raise whatever damage makes of them
        raise ValueError(
            f"{file} cannot be read ({error}); expected a whole file of weights: write it anew."
        ) from error


def _warn_if_unfinished(run: Path) -> None:
    checkpoint = last_checkpoint(run)
    if checkpoint is None:
        return
    state = json.loads((checkpoint / "trainer_state.json").read_text("utf-8"))
    if state["global_step"] < state["max_steps"]:
        logger.warning("%s has made %d of its %d steps", run, state["global_step"], state["max_steps"])


def keep_settings(run: Path, config: dict[str, Any], stage: str) -> None:
    """Write down what a run is made with, and refuse to go on with anything else: its batches and rates would differ.

    Args:
        run: The run's folder.
        config: The training configuration, with what the command line overrides.
        stage: One of `STAGES`.

    Raises:
        ValueError: If the run was begun with other settings.
    """
    settings = _flat({"stage": stage} | config | {"stages": {stage: config["stages"][stage]}})
    file = run / SETTINGS_FILE
    if not file.exists():
        run.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(settings, indent=1) + "\n")
    begun = json.loads(file.read_text("utf-8"))
    for name in sorted(begun.keys() | settings.keys()):
        if begun.get(name) != settings.get(name):
            raise ValueError(
                f"{run} was begun with {name} = {begun.get(name)!r}, but now it is {settings.get(name)!r}. Go on with "
                "the same training/config.json and options, or give the new run another --name."
            )


def _flat(settings: dict[str, Any], start: str = "") -> dict[str, Any]:
    """Name every setting by its path, "stages.joint.rate"."""
    flat = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{start}{name}.") if isinstance(value, dict) else {start + name: value}
    return flat


def initial_weights(stage: str, runs: Path, start: Path | None) -> dict[str, torch.Tensor]:
    """Collect what a stage starts from.

    Args:
        stage: One of `STAGES`.
        runs: The folder of all runs.
        start: A place for `read_weights`, or None for the stages before this one.

    Returns:
        Weights by name, none for a stage that starts from scratch.
    """
    if start is not None:
        return read_weights(start)
    if stage != "joint":
        return {}
    for before in ("language", "vision"):
        _warn_if_unfinished(runs / before)
    language, vision = (read_weights(runs / before) for before in ("language", "vision"))
    chosen = {name: value for name, value in vision.items() if not name.startswith("language_model")}
    return chosen | {name: value for name, value in language.items() if name.startswith(TRAINED["language"])}


def main() -> None:
    """Train one stage from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--runs", type=Path, required=True, help="folder of checkpoints and logs, one per stage")
    parser.add_argument("--name", help="name of this run; default: the stage")
    parser.add_argument("--weights", type=Path, help="run, checkpoint folder or file whose weights to start from")
    parser.add_argument("--steps", type=int, help="overrides the configured number of steps")
    parser.add_argument("--rate", type=float, help="overrides the configured share of the peak learning rates")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads per process")
    parser.add_argument("--workers", type=int, default=0, help="processes that draw batches, per training process")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    config = load_config()
    for name in ("steps", "rate"):
        if getattr(options, name) is not None:
            config["stages"][options.stage][name] = getattr(options, name)
    run = options.runs / (options.name or options.stage)
    arguments = training_arguments(config, options.stage, run, options.workers)
    torch.set_num_threads(options.threads)
    trainer = StageTrainer(config, options.stage, arguments)
    logger.info("%.2f million parameters", sum(value.numel() for value in trainer.model.model.parameters()) / 1e6)
    if trainer.is_world_process_zero():
        keep_settings(run, config, options.stage)
    if last_checkpoint(run) is None:
        trainer.model.take_over(initial_weights(options.stage, options.runs, options.weights))
    trainer.run()
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main()
