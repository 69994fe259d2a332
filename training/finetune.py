"""Fine-tunes a checkpoint in the published layout on the user's conversations, fully or with LoRA.

Run it with `python -m training.finetune --model FOLDER --data FILE.jsonl --output-dir RUN`, under `torchrun` or
`accelerate launch` for several processes, or give one JSON file with the same names. Every option of Transformers'
`TrainingArguments` is one here. The result is `RUN/model`, a checkpoint folder as the one it started from.
"""

import logging
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.utils.data import Dataset, Sampler
from transformers import HfArgumentParser, PreTrainedModel, TrainingArguments, set_seed
from transformers.integrations import unset_hf_deepspeed_config
from transformers.trainer_pt_utils import LengthGroupedSampler

from training.conversations import Conversations, read_conversations
from training.durable import replaced_folder
from training.folders import load_model, load_processor, local_folder
from training.merge import merge, write_folder
from training.trainer import RunTrainer


logger = logging.getLogger(__name__)
IGNORED_LABEL = -100
LOSS_AVERAGES = ["token", "square_root"]
# Parts of the model by the name of the module that holds them.
PARTS = {"vision": "vision_model", "projector": "mlp1", "language": "language_model"}


@dataclass
class FinetuneArguments(TrainingArguments):
    """Everything about a run: the options of fine-tuning, and with other defaults those of Transformers' Trainer."""

    model: str = field(default="", metadata={"help": "Checkpoint folder to fine-tune."})
    data: list[str] = field(default_factory=list, metadata={"help": "JSONL files of conversations."})
    eval_data: list[str] = field(default_factory=list, metadata={"help": "The same, for the loss of evaluation."})
    image_folder: str | None = field(
        default=None, metadata={"help": "Where relative image paths start; default: each JSONL file's folder."}
    )
    max_tiles: int | None = field(
        default=None, metadata={"help": "Largest number of tiles of an image; default: the checkpoint's, 12."}
    )
    max_length: int | None = field(
        default=None,
        metadata={
            "help": "Conversations of more tokens, those of images included, are left out; default: the context."
        },
    )
    freeze_vision: bool = field(default=False, metadata={"help": "Leave the vision encoder as it is."})
    freeze_projector: bool = field(default=False, metadata={"help": "Leave the projector as it is."})
    freeze_language: bool = field(default=False, metadata={"help": "Leave the language model as it is."})
    lora_rank: int = field(default=0, metadata={"help": "Rank of LoRA adapters; 0 trains the weights themselves."})
    lora_alpha: int | None = field(default=None, metadata={"help": "Scale of the adapters; default: twice the rank."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout before the adapters."})
    lora_parts: list[str] = field(
        default_factory=lambda: ["language"],
        metadata={"help": f"Which parts get adapters, some of {', '.join(PARTS)}; all else stays as it is."},
    )
    loss_average: str = field(
        default="token",
        metadata={
            "help": "How answers share the loss: every token alike, or every answer by the square root of its length.",
            "choices": LOSS_AVERAGES,
        },
    )
    dtype: str | None = field(
        default=None,
        metadata={"help": "Dtype of the weights while training; default: float32, with LoRA the checkpoint's."},
    )
    attention: str = field(default="sdpa", metadata={"help": "Attention backend, for example flash_attention_2."})

    # Defaults of Transformers that do not suit here.
    num_train_epochs: float = field(default=1.0, metadata={"help": "Times that all conversations are seen."})
    per_device_train_batch_size: int = field(default=1, metadata={"help": "Conversations per process and pass."})
    per_device_eval_batch_size: int = field(default=1, metadata={"help": "The same for evaluation."})
    learning_rate: float = field(default=4e-5, metadata={"help": "Peak learning rate."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule of the learning rate."})
    warmup_steps: float = field(default=0.03, metadata={"help": "Steps of warm-up; below 1 the share of all steps."})
    weight_decay: float = field(default=0.05, metadata={"help": "Weight decay of AdamW."})
    logging_steps: float = field(default=10, metadata={"help": "Steps between two lines of the log."})
    save_steps: float = field(default=200, metadata={"help": "Steps between two checkpoints."})
    save_total_limit: int | None = field(default=2, metadata={"help": "How many checkpoints are kept."})
    prediction_loss_only: bool = field(default=True, metadata={"help": "Evaluate the loss alone."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must be false here."})
    report_to: None | str | list[str] = field(default="none", metadata={"help": "Where else to log."})

    def __post_init__(self) -> None:
        missing = [name for name in ("model", "data") if not getattr(self, name)]
        if missing:
            raise ValueError(f"No {' and no '.join(missing)} given; expected --model FOLDER and --data FILE.jsonl.")
        unknown = sorted(set(self.lora_parts) - set(PARTS))
        if unknown:
            raise ValueError(f"--lora-parts has {', '.join(unknown)}; expected some of {', '.join(PARTS)}.")
        if self.loss_average not in LOSS_AVERAGES:  # a JSON file passes by the parser's choices
            raise ValueError(f"--loss-average is {self.loss_average}; expected one of {', '.join(LOSS_AVERAGES)}.")
        # Several processes on CPUs are several only when told so.
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        self.dataloader_pin_memory = self.dataloader_pin_memory and not self.use_cpu
        super().__post_init__()

    @property
    def frozen_parts(self) -> list[str]:
        """Parts that do not learn in any way."""
        learning = self.lora_parts if self.lora_rank else PARTS
        return [part for part in PARTS if part not in learning or getattr(self, f"freeze_{part}")]


def choose_trained(model: PreTrainedModel, arguments: FinetuneArguments) -> nn.Module:
    """Freeze what shall not learn, and put adapters where they are asked for.

    Args:
        model: The model.
        arguments: The run's.

    Returns:
        The model, or a PEFT model around it.

    Raises:
        ValueError: If nothing is left to learn.
    """
    learning = [PARTS[part] for part in PARTS if part not in arguments.frozen_parts]
    if not learning:
        raise ValueError(
            f"Nothing is left to learn: {', '.join(arguments.frozen_parts)} are frozen. Drop a --freeze option, or "
            "name other --lora-parts."
        )
    if not arguments.lora_rank:
        for name, value in model.named_parameters():
            value.requires_grad_(name.split(".")[0] in learning)
        return model
    head = model.get_output_embeddings()
    targets = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.split(".")[0] in learning and module is not head
    ]
    config = LoraConfig(
        r=arguments.lora_rank,
        lora_alpha=2 * arguments.lora_rank if arguments.lora_alpha is None else arguments.lora_alpha,
        lora_dropout=arguments.lora_dropout,
        target_modules=targets,
    )
    return get_peft_model(model, config)


class LengthGroupedOrder(LengthGroupedSampler):
    """Transformers' order that brings similar lengths together, drawn anew for each epoch from a seed."""

    def __init__(self, batch_size: int, lengths: list[int], seed: int) -> None:
        super().__init__(batch_size, lengths=lengths)
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Start the order of an epoch, the same in all processes and after a restart."""
        self.generator = torch.Generator().manual_seed(self.seed + epoch)


def square_root_weights(labels: torch.Tensor) -> torch.Tensor:
    """Weigh each answer by the square root of its length.

    Args:
        labels: Learned tokens (batch, seq), else -100; a prompt stands before each answer.

    Returns:
        1/sqrt(length) inside an answer, else 0 (batch, seq).
    """
    is_learned = labels != IGNORED_LABEL
    starts = is_learned & ~is_learned.roll(1, dims=1)
    answer = starts.flatten().cumsum(0).view_as(labels)  # the number of each token's answer
    lengths = answer[is_learned].bincount()
    return torch.where(is_learned, lengths[answer] ** -0.5, 0.0)


class FinetuneTrainer(RunTrainer):
    """Trains on `Conversations`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.args.loss_average == "square_root":
            # The model's weighted mean is one of this batch, not of a number of tokens that the Trainer counts.
            self.model_accepts_loss_kwargs = False

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """Compute the loss with the weights that the run asks for."""
        if self.args.loss_average == "square_root":
            inputs = {**inputs, "loss_weight": square_root_weights(inputs["labels"])}
        return super().compute_loss(model, inputs, *args, **kwargs)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        # Transformers would encode every conversation to learn its length.
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(dataset)
        batch_size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return LengthGroupedOrder(batch_size, dataset.lengths, self.args.seed)


def finetune(arguments: FinetuneArguments) -> Path:
    """Run or continue a fine-tuning.

    Args:
        arguments: The run's.

    Returns:
        The folder of the fine-tuned checkpoint.
    """
    set_seed(arguments.seed)  # adapters start from random numbers
    source, run = local_folder(arguments.model), Path(arguments.output_dir)
    processor = load_processor(source)
    dtype = arguments.dtype or ("auto" if arguments.lora_rank else "float32")
    model = load_model(source, dtype=dtype, attn_implementation=arguments.attention)
    model.config.llm_config.use_cache = False
    collator = processor.data_collator(max_tiles=arguments.max_tiles)
    max_length = arguments.max_length or model.config.llm_config.max_position_embeddings

    def conversations(files: Iterable[str]) -> Conversations:
        folder = None if arguments.image_folder is None else Path(arguments.image_folder)
        read = chain.from_iterable(read_conversations(Path(file), folder) for file in files)
        return Conversations(read, collator, max_length)

    trainer = FinetuneTrainer(
        model=choose_trained(model, arguments),
        args=arguments,
        train_dataset=conversations(arguments.data),
        eval_dataset=conversations(arguments.eval_data) if arguments.eval_data else None,
        data_collator=collator.join,
    )
    check_sharding(trainer.model, trainer.accelerator)
    trainer.run()
    write_result(trainer, source, run)
    trainer.accelerator.end_training()
    return run / "model"


def check_sharding(model: nn.Module, accelerator: Accelerator) -> None:
    """Refuse what would lose adapters in silence: FSDP's checkpointing renames the layers where PEFT looks for them.

    Args:
        model: The model that learns.
        accelerator: The Trainer's.

    Raises:
        ValueError: If checkpoints would have no adapters.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if isinstance(model, PeftModel) and plugin is not None and plugin.activation_checkpointing:
        raise ValueError(
            "With FSDP's own activation checkpointing the adapters would not be saved: set "
            "fsdp_activation_checkpointing to false and pass --activation-checkpointing instead."
        )


def write_result(trainer: FinetuneTrainer, source: Path, run: Path) -> None:
    """Write the fine-tuned checkpoint folder `model`, and with LoRA the adapters alone as `adapter`.

    Args:
        trainer: At the end of training.
        source: The folder that the model came from.
        run: Where to write.
    """
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # all processes bring what they hold
    unset_hf_deepspeed_config()  # from here on one process works alone, and loads the first weights whole
    if trainer.is_world_process_zero():
        model = trainer.accelerator.unwrap_model(trainer.model)
        if isinstance(model, PeftModel):
            with replaced_folder(run / "adapter") as new:
                model.save_pretrained(new, state_dict=state)
            merge(source, run / "adapter", run / "model")
        else:
            write_folder(state, source, run / "model")
        logger.info("The fine-tuned checkpoint is %s", run / "model")
    trainer.accelerator.wait_for_everyone()


def main() -> None:
    """Fine-tune from the command line."""
    logging.basicConfig(level=logging.INFO)
    parser = HfArgumentParser(FinetuneArguments, description=__doc__)
    if len(sys.argv) == 2 and sys.argv[1].endswith(".json"):
        (arguments,) = parser.parse_json_file(sys.argv[1])
    else:
        (arguments,) = parser.parse_args_into_dataclasses()
    finetune(arguments)


if __name__ == "__main__":
    main()
