"""The embedded checkpoint learns under TRL and PEFT: SFT, 4 bits, DPO and MPO, and the merged folder is complete."""

import math
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close


ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

pytest.importorskip("trl")
from datasets import Dataset  # noqa: E402
from peft import LoraConfig, PeftModel, get_peft_model  # noqa: E402
from trl import SFTConfig, SFTTrainer  # noqa: E402

from examples import finetune_dpo, finetune_sft  # noqa: E402


pytestmark = [pytest.mark.newest, pytest.mark.slow]

TINY = ROOT / "tiny"
PAGE = (ROOT / "docs" / "finetuning.md").read_text("utf-8")


@pytest.fixture(scope="module")
def processor():
    return finetune_sft.load_processor(TINY)


@pytest.fixture(scope="module")
def batch(processor):
    """Two new pictures and what is said about them."""
    return processor.data_collator()(list(map(finetune_sft.conversation, finetune_sft.pictures(2, seed=3))))


@pytest.fixture(scope="module")
def sft(processor, tmp_path_factory):
    """A trained run: its folder, its trainer, the losses."""
    output = tmp_path_factory.mktemp("sft")
    model = finetune_sft.load(TINY, dtype=torch.float32)
    trainer = finetune_sft.train(model, processor, output, steps=24)
    return output, trainer


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def one_turn(picture):
    """A conversation of one turn, as prompt and completion."""
    messages = finetune_sft.conversation(picture)["messages"]
    return {"images": [picture["image"]], "prompt": messages[:1], "completion": messages[1:2]}


@torch.no_grad()
def logits_of(model, batch):
    return model.eval()(**{name: value for name, value in batch.items() if name != "labels"}).logits.float()


def test_sft_learns_both_turns(sft):
    _, trainer = sft
    assert trainer.model.is_gradient_checkpointing
    losses, accuracy = logged(trainer, "loss"), logged(trainer, "mean_token_accuracy")
    assert losses[-1] < 0.1 * losses[0], losses
    assert accuracy[-1] > 0.8, accuracy


def test_merged_model_is_the_adapted_one_wherever_it_goes(sft, batch, processor, tmp_path):
    """Merged, saved and loaded from another place, with nothing but the folder's own files."""
    output, trainer = sft
    adapted = logits_of(trainer.model, batch)
    plain = logits_of(finetune_sft.load(TINY, dtype=torch.float32), batch)
    assert not torch.allclose(plain, adapted, atol=1.0)

    base = finetune_sft.load(TINY, dtype=torch.float32)
    PeftModel.from_pretrained(base, output / "adapter").merge_and_unload().save_pretrained(output / "float")
    processor.save_pretrained(output / "float")
    moved = Path(shutil.move(output / "float", tmp_path / "elsewhere"))
    assert list(moved.glob("modeling_*.py"))
    assert_close(logits_of(finetune_sft.load(moved), batch), adapted, atol=2e-3, rtol=1e-3)

    # In the checkpoint's own bfloat16, as the example saves it.
    merged = finetune_sft.merge(TINY, output / "adapter", output / "model")
    reloaded = finetune_sft.load(output / "model")
    assert reloaded.dtype == torch.bfloat16
    assert torch.equal(logits_of(reloaded, batch), logits_of(merged, batch))
    answers = finetune_sft.load_processor(output / "model")
    picture = finetune_sft.pictures(1, seed=2)[0]
    said = finetune_sft.ask(reloaded, answers, picture)
    assert re.fullmatch(r"[a-z]+, [a-z]+", said[0]), said


def test_trls_own_collator_makes_the_same_batch(processor, tmp_path):
    """Prompt and completion need no collator of ours; and a max_length that cuts an image is named."""
    rows = list(map(one_turn, finetune_sft.pictures(2, seed=4)))
    settings = {"report_to": "none", "bf16": False, "max_steps": 1, "logging_steps": 1}
    trainer = SFTTrainer(
        finetune_sft.load(TINY, dtype=torch.float32),
        args=SFTConfig(tmp_path, max_length=None, save_strategy="no", **settings),
        train_dataset=Dataset.from_list(rows),
        processing_class=processor,
        peft_config=finetune_sft.LORA,
    )
    theirs = trainer.data_collator([dict(row) for row in rows])
    ours = processor.data_collator()(
        [{"messages": row["prompt"] + row["completion"], "images": row["images"]} for row in rows]
    )
    for name in ("input_ids", "attention_mask", "labels", "pixel_values"):
        assert torch.equal(theirs[name], ours[name]), name
    trainer.train()
    assert math.isfinite(logged(trainer, "loss")[0])

    trainer.args.max_length = trainer.data_collator.max_length = 20
    with pytest.raises(ValueError, match=r"max_length` \(20\) is too short"):
        trainer.train()


def test_qlora(processor, tmp_path):
    """Adapters learn on 4-bit weights, which stay as they are; vision encoder, projector and head keep 16 bits."""
    model = finetune_sft.load(TINY, qlora=True, dtype=torch.bfloat16)
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    assert kinds["language_model.model.layers.0.attention.wqkv"] == "Linear4bit"
    assert {kinds[name] for name in ("vision_model.encoder.layers.0.attn.qkv", "mlp1.1", "language_model.output")} == {
        "Linear"
    }
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = finetune_sft.train(model, processor, tmp_path, steps=10)
    losses = logged(trainer, "loss")
    assert losses[-1] < 0.7 * losses[0], losses

    after = {name.replace(".base_layer", ""): value for name, value in model.state_dict().items()}
    assert [name for name, value in before.items() if not torch.equal(value, after[name])] == []
    adapters = [value for name, value in after.items() if "lora_B" in name]
    assert adapters
    assert all(value.abs().max() > 0 for value in adapters)

    finetune_sft.merge(TINY, tmp_path / "adapter", tmp_path / "model")
    assert finetune_sft.load(tmp_path / "model").dtype == torch.bfloat16


@pytest.mark.parametrize("loss", ["mpo", "dpo"])
def test_preferences(processor, tmp_path, loss):
    model = finetune_sft.load(TINY, dtype=torch.float32)
    trainer = finetune_dpo.train(model, processor, tmp_path, steps=6, loss=loss)
    losses, margins = logged(trainer, "loss"), logged(trainer, "rewards/margins")
    assert losses[-1] < 0.7 * losses[0], losses
    assert margins[-1] > margins[0] + 1.0, margins
    assert logged(trainer, "rewards/accuracies")[-1] == 1.0


def test_all_linear_layers_but_the_head():
    """TRL refuses adapters on the output head; PEFT's short name for all layers leaves it out."""
    model = get_peft_model(finetune_sft.load(TINY), LoraConfig(target_modules="all-linear"))
    adapted = {name.split(".lora_A")[0].removeprefix("base_model.model.") for name, _ in model.named_parameters()}
    assert {
        "mlp1.1",
        "vision_model.encoder.layers.0.attn.qkv",
        "language_model.model.layers.0.feed_forward.w2",
    } <= adapted
    assert "lora_A" not in str(model.get_output_embeddings())


def test_page(tiny_folder, monkeypatch, tmp_path):
    """The code of docs/finetuning.md, as a user would paste it."""
    code = re.search(r"```py\n(.*?)```", PAGE, flags=re.DOTALL)[1]
    for old, new in {"InternVL-Chat-V1-5": tiny_folder, "examples/shapes.png": ROOT / "examples/shapes.png"}.items():
        assert code.count(f'"{old}"') == 1
        code = code.replace(f'"{old}"', repr(str(new)))
    code = code.replace("SFTConfig(", "SFTConfig(use_cpu=True, report_to='none', output_dir=", 1)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "docs/finetuning.md", "exec"), {})
    model, processor = finetune_sft.load(tmp_path / "merged"), finetune_sft.load_processor(tmp_path / "merged")
    tiles = processor.image_processor(str(ROOT / "examples" / "shapes.png"))["pixel_values"]
    assert model.chat(processor.tokenizer, tiles, "What colour is the circle?")
    assert list((tmp_path / "run").glob("checkpoint-1/adapter_model.safetensors"))
