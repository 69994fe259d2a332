"""XTuner's model class `InternVL_V1_5` and its data set, unchanged, on the embedded checkpoint."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed
from torch.testing import assert_close
from transformers import AutoProcessor


@pytest.fixture
def one_process(tmp_path):
    """The class asks for its rank."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture
def model_class(client, one_process):
    return client("xtuner", "xtuner.model.internvl").InternVL_V1_5


@pytest.fixture
def data(tiny_folder):
    token = AutoProcessor.from_pretrained(tiny_folder, trust_remote_code=True).image_token_id
    input_ids = torch.tensor([[1, *[token] * 64, 30, 31, 32]])
    return {
        "pixel_values": [torch.randn(1, 3, 224, 224)],
        "input_ids": input_ids,
        "labels": input_ids.masked_fill(input_ids == token, -100),
        "attention_mask": torch.ones_like(input_ids),
        "position_ids": torch.arange(input_ids.shape[1])[None],
    }


def test_trains(model_class, tiny_folder, data):
    tuned = model_class(str(tiny_folder), freeze_visual_encoder=True)
    loss = tuned(data)["loss"]
    loss.backward()
    inputs = {name: data[name] for name in ("input_ids", "labels", "attention_mask")}
    with torch.no_grad():
        ours = tuned.model(pixel_values=data["pixel_values"][0].bfloat16(), **inputs).loss
    assert_close(loss.detach().float(), ours, atol=0.02, rtol=0.01)  # theirs is in bfloat16
    assert tuned.model.mlp1[1].weight.grad.abs().max() > 0
    names = tuned.state_dict()
    assert any(name.startswith("model.language_model.") for name in names)
    assert not any(name.startswith("model.vision_model.") for name in names)


def test_trains_adapters(model_class, tiny_folder, data):
    """XTuner chooses the layers itself: all linear ones of the language model, the head among them."""
    lora = {"type": pytest.importorskip("peft").LoraConfig, "r": 4, "target_modules": None, "task_type": "CAUSAL_LM"}
    tuned = model_class(str(tiny_folder), freeze_llm=True, freeze_visual_encoder=True, llm_lora=lora)
    tuned(data)["loss"].backward()
    adapters = {name: value for name, value in tuned.named_parameters() if "lora_B" in name}
    layers = {name.split(".lora_B")[0].split(".")[-1] for name in adapters}
    assert layers == {"wqkv", "wo", "w1", "w2", "w3", "output"}
    assert all(value.grad.abs().max() > 0 for value in adapters.values())


def test_data_set(client, tiny_folder, shapes_path, tmp_path):
    """Its tokens, labels and tiles are those of our data collator."""
    module = client("xtuner", "xtuner.dataset.internvl_dataset")
    template = client("xtuner", "xtuner.utils").PROMPT_TEMPLATE.internlm2_chat
    said = ("<image>\nWhat colour is the circle?", "red", "And the star?", "orange")
    turns = [{"from": role, "value": text} for role, text in zip(("human", "gpt") * 2, said, strict=True)]
    file, shapes = tmp_path / "data.jsonl", Path(shapes_path)
    file.write_text(json.dumps({"image": shapes.name, "conversations": turns}) + "\n", "utf-8")
    dataset = module.InternVL_V1_5_Dataset(str(tiny_folder), template, str(file), str(shapes.parent))
    sample = dataset[0]

    messages = [{"role": "system", "content": dataset._system}]
    messages += [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, said, strict=True)]
    collate = AutoProcessor.from_pretrained(tiny_folder, trust_remote_code=True).data_collator()
    expected = collate([{"messages": messages, "image": shapes_path}])
    assert sample["input_ids"] == expected["input_ids"][0].tolist()
    assert sample["labels"] == expected["labels"][0].tolist()
    assert_close(sample["pixel_values"], expected["pixel_values"], atol=1e-6, rtol=0)
