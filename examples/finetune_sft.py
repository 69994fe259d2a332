"""Teach a checkpoint a new way to answer, with TRL's SFTTrainer and LoRA, on pictures drawn here.

Usage: `python -m examples.finetune_sft [--model FOLDER] [--qlora] [--output RUN]` in the repository's root. Asked to
"Label it.", the model shall say "star, red", and when asked again the same in Chinese: two turns, both learned. With
`--qlora` the weights are in 4 bits while it learns. The result is `RUN/model`, a folder like the one it came from.
"""

import argparse
import random
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import BitsAndBytesConfig, PreTrainedModel, ProcessorMixin
from trl import SFTConfig, SFTTrainer

from training.folders import load_model, load_processor
from training.pictures import Scene, draw_shape


COLOURS = {"red": "红色", "green": "绿色", "blue": "蓝色", "yellow": "黄色"}
SHAPES = {"circle": "圆形", "square": "正方形", "triangle": "三角形", "star": "五角星"}
QUESTION, AGAIN = "Label it.", "用中文。"
# The linear layers of InternLM2; with "all-linear" the vision encoder and the projector get adapters as well.
LORA = LoraConfig(r=16, lora_alpha=32, target_modules=["wqkv", "wo", "w1", "w2", "w3"], task_type="CAUSAL_LM")
NF4 = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.bfloat16,
)
HAS_GPU = torch.cuda.is_available()


def pictures(number: int, seed: int) -> list[dict]:
    """Draw pictures of one shape, one tile large: `image`, `colour` and `shape` of each."""
    rng, drawn = random.Random(seed), []
    for _ in range(number):
        colour, shape = rng.choice(list(COLOURS)), rng.choice(list(SHAPES))
        scene, side = Scene.blank((224, 224), (250, 250, 244)), rng.randint(80, 140)
        left, top = rng.randint(8, 216 - side), rng.randint(8, 216 - side)
        draw_shape(scene, rng, shape, colour, (left, top, left + side, top + side))
        drawn.append({"image": scene.image, "colour": colour, "shape": shape})
    return drawn


def conversation(picture: dict) -> dict:
    """Write the conversation to learn about a picture, as TRL's datasets have it."""
    colour, shape = picture["colour"], picture["shape"]
    messages = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": f"{shape}, {colour}"},
        {"role": "user", "content": AGAIN},
        {"role": "assistant", "content": f"{SHAPES[shape]}，{COLOURS[colour]}"},
    ]
    return {"messages": messages, "images": [picture["image"]]}


def load(folder: Path, qlora: bool = False, dtype: torch.dtype | str = "auto") -> PreTrainedModel:
    """Load the model of a checkpoint folder, in 4 bits if so asked."""
    return load_model(folder, dtype=dtype, **({"quantization_config": NF4} if qlora else {}))


def train(model: PreTrainedModel, processor: ProcessorMixin, output: Path, steps: int) -> SFTTrainer:
    """Train LoRA adapters and save them to `output/adapter`."""
    arguments = SFTConfig(
        output_dir=output,
        max_steps=steps,
        per_device_train_batch_size=8,
        learning_rate=2e-3,
        warmup_steps=4,
        logging_steps=5,
        save_strategy="no",
        report_to="none",
        use_cpu=not HAS_GPU,
        bf16=model.dtype == torch.bfloat16,
        max_length=None,  # TRL would cut after 1024 tokens, which is within the fourth tile of 448 pixels
        gradient_checkpointing=True,  # TRL's default
    )
    trainer = SFTTrainer(
        model,
        args=arguments,
        train_dataset=Dataset.from_list([conversation(picture) for picture in pictures(64, seed=1)]),
        data_collator=processor.data_collator(),
        processing_class=processor,
        peft_config=LORA,
    )
    trainer.train()
    trainer.save_model(str(output / "adapter"))
    return trainer


def merge(folder: Path, adapter: Path, target: Path) -> PreTrainedModel:
    """Merge adapters into the weights they were trained on, unquantized, and save a complete folder."""
    model = PeftModel.from_pretrained(load(folder), adapter).merge_and_unload()
    model.save_pretrained(target)
    load_processor(folder).save_pretrained(target)
    return model


def ask(model: PreTrainedModel, processor: ProcessorMixin, picture: dict) -> list[str]:
    """Ask both questions about a picture."""
    tiles, history = processor.image_processor(picture["image"])["pixel_values"], None
    for question in (QUESTION, AGAIN):
        _, history = model.chat(
            processor.tokenizer, tiles, question, {"max_new_tokens": 24}, history=history, return_history=True
        )
    return [answer for _, answer in history]


def main() -> None:
    """Train, merge, reload and ask."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("tiny"), help="checkpoint folder (default: the embedded)")
    parser.add_argument("--qlora", action="store_true", help="keep the weights in 4 bits while the adapters learn")
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps")
    parser.add_argument("--output", type=Path, default=Path("runs/sft"), help="folder of the run")
    options = parser.parse_args()

    processor = load_processor(options.model)
    # float32 is faster than bfloat16 on most CPUs; in 4 bits the rest of the model has the dtype it computes in.
    dtype = torch.bfloat16 if HAS_GPU or options.qlora else torch.float32
    train(load(options.model, options.qlora, dtype), processor, options.output, options.steps)

    merge(options.model, options.output / "adapter", options.output / "model")
    model, processor = load(options.output / "model"), load_processor(options.output / "model")
    for picture in pictures(4, seed=2):
        print(picture["shape"], picture["colour"], "->", *ask(model.eval(), processor, picture), sep="  ")


if __name__ == "__main__":
    main()
