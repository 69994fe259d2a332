"""A small random folder in each published layout: adopted by the command, it works in every way of the package."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from family import small_layouts, vocabulary, write_folder
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig, pipeline

from examples import adopt


ROOT = Path(__file__).resolve().parent.parent
LAYOUTS = small_layouts()
OPTIONS = {"max_new_tokens": 4, "do_sample": False}
QUESTION = "What is it?"
IMAGE = Image.new("RGB", (120, 60), "red")
MESSAGES = [{"role": "user", "content": [{"type": "image", "image": IMAGE}, {"type": "text", "text": QUESTION}]}]
# One layout for each language model; the others differ by the prompt format, the vision encoder or a flag.
FAST = ("InternVL-Chat-V1-1", "InternVL-Chat-V1-5", "Mini-InternVL-Chat-4B-V1-5 (su)", "InternVL3-1B", "InternVL3-9B")
FAST += ("InternVL3_5-1B", "InternVL3_5-30B-A3B", "InternVL3_5-GPT-OSS-20B-A4B")


def load(folder, **kwargs):
    kwargs = {"dtype": torch.float32, "trust_remote_code": True, **kwargs}
    return AutoModelForImageTextToText.from_pretrained(folder, **kwargs).eval()


def chat_inputs(processor):
    return processor.apply_chat_template(
        MESSAGES, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in LAYOUTS]
)
def test_a_published_layout(name, tmp_path, capsys):
    folder = write_folder(tmp_path / "published", LAYOUTS[name])
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    if adopt.main([str(folder)]):
        error = capsys.readouterr().err
        assert "does not fuse the experts" in error
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
        pytest.skip(error)
    report = capsys.readouterr().out
    assert f"template {LAYOUTS[name]['template']}" in report
    processor, model = AutoProcessor.from_pretrained(folder, trust_remote_code=True), load(folder)
    check_answers(processor, model, folder)
    check_lora_step(processor, model)
    check_round_trip(processor, folder, tmp_path / "saved")
    check_four_bits(processor, folder)
    unchanged = before.keys() - {"config.json"}
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name in unchanged} == {
        file: before[file] for file in unchanged
    }


def check_answers(processor, model, folder):
    """One question, asked in every way, has one answer."""
    tokenizer, inputs = processor.tokenizer, chat_inputs(processor)
    one_tile = not model.config.dynamic_image_size
    assert len(inputs["pixel_values"]) == (1 if one_tile else 3)
    assert inputs["input_ids"].eq(model.config.image_token_id).sum() == 4 * len(inputs["pixel_values"])
    tokens = model.generate(**inputs, **OPTIONS)[:, inputs["input_ids"].shape[1] :]
    stop = tokenizer.convert_tokens_to_ids(model.conv_template.stop)
    assert stop in model.generation_config.eos_token_id
    expected = model.chat(tokenizer, inputs["pixel_values"], QUESTION, OPTIONS)
    assert processor.post_process_image_text_to_text(tokens)[0].strip() == expected
    with model.start_chat(tokenizer, inputs["pixel_values"], OPTIONS) as session:
        assert session.chat(QUESTION) == expected
        session.chat("And now?")
    pipe = pipeline(
        "image-text-to-text", model=str(folder), trust_remote_code=True, dtype=torch.float32, device_map="cpu"
    )
    (answer,) = pipe(text=MESSAGES, return_full_text=False, max_new_tokens=4, generate_kwargs={"do_sample": False})
    assert answer["generated_text"].strip() == processor.post_process_image_text_to_text(tokens)[0].strip()


def check_lora_step(processor, model):
    if not find_spec("peft"):
        return
    import peft  # noqa: PLC0415

    config = peft.LoraConfig(r=4, target_modules=r"language_model\..*\.(wqkv|q_proj|qkv_proj)")
    trained = peft.get_peft_model(model, config).train()
    batch = processor.data_collator()([{"messages": [*MESSAGES, {"role": "assistant", "content": "red"}]}])
    optimizer = torch.optim.SGD([one for one in trained.parameters() if one.requires_grad], lr=0.1)
    losses = []
    for _ in range(2):
        loss = trained(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] != losses[0]
    trained.unload()


@torch.no_grad()
def check_round_trip(processor, folder, saved):
    model, inputs = load(folder, dtype=torch.bfloat16), chat_inputs(processor)
    model.save_pretrained(saved)
    processor.save_pretrained(saved)
    again = AutoProcessor.from_pretrained(saved, trust_remote_code=True)
    assert chat_inputs(again)["input_ids"].tolist() == inputs["input_ids"].tolist()
    assert torch.equal(load(saved, dtype=torch.bfloat16)(**inputs).logits, model(**inputs).logits)


@torch.no_grad()
def check_four_bits(processor, folder):
    if not find_spec("bitsandbytes"):
        return
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    model, inputs = load(folder, quantization_config=config), chat_inputs(processor)
    kinds = {type(module).__name__ for module in model.language_model.modules()}
    assert "Linear4bit" in kinds
    assert torch.isfinite(model(**inputs).logits).all()
    assert model.generate(**inputs, **OPTIONS).shape[1] > inputs["input_ids"].shape[1]


# What is reported, and what is refused.


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    if not LAYOUTS:
        pytest.skip("the published layouts (shared/goldens beside the repository) are not here")
    return write_folder(tmp_path_factory.mktemp("family") / "published", LAYOUTS["InternVL3-1B"])


@pytest.fixture
def folder(published, tmp_path):
    return Path(shutil.copytree(published, tmp_path / "folder"))


def change_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")


def test_a_dry_run_changes_nothing(folder, capsys):
    before = sorted(path.name for path in folder.iterdir())
    (folder / "conversation.py").write_text("", "utf-8")
    (folder / "modeling_internvl_chat.py").write_text("", "utf-8")
    assert adopt.main([str(folder), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {"replaces modeling_internvl_chat.py", "adds processing_internvl.py"} < set(lines)
    assert lines[-4:] == [
        "writes preprocessor_config.json",
        "writes processor_config.json",
        "writes chat_template.jinja",
        "writes generation_config.json",
    ]
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*before, "conversation.py", "modeling_internvl_chat.py"]
    )


def test_what_is_written(folder):
    clip = {
        "feature_extractor_type": "CLIPFeatureExtractor",
        "size": 448,
        "image_mean": [0.5, 0.5, 0.5],
        "resample": 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(clip), "utf-8")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 7, "top_p": 0.5}), "utf-8")
    change_json(folder / "config.json", max_dynamic_patch=6, use_thumbnail=False)
    lines = adopt.adopt(folder, load=False)
    assert {"completes preprocessor_config.json", "completes generation_config.json"} < set(lines)
    written = {
        name: json.loads((folder / f"{name}_config.json").read_text("utf-8"))
        for name in ("preprocessor", "processor", "generation")
    }
    tiles = {"max_tiles": 6, "min_tiles": 1, "use_thumbnail": False, "tile_size": 56, "image_mean": [0.5, 0.5, 0.5]}
    assert {name: written["preprocessor"][name] for name in tiles} == tiles
    assert (written["processor"]["patch_size"], written["processor"]["downsample_factor"]) == (14, 2)
    stop = vocabulary(folder)["<|im_end|>"]
    assert (written["generation"]["eos_token_id"], written["generation"]["top_p"]) == ([7, stop], 0.5)
    auto_map = json.loads((folder / "config.json").read_text("utf-8"))["auto_map"]
    assert auto_map["AutoModelForImageTextToText"] == "modeling_internvl_chat.InternVLChatModel"
    assert "AutoTokenizer" not in auto_map
    again = adopt.adopt(folder, load=False)
    assert not any(line.startswith("adds") for line in again)


@pytest.mark.parametrize("is_v1_2", [True, False])
def test_tiles_come_from_the_published_config(folder, is_v1_2):
    """Without preprocessor_config.json, and with the published one of CLIP, by the published files and this code."""
    tiles = {"dynamic_image_size": False, "use_thumbnail": False} if is_v1_2 else {"max_dynamic_patch": 2}
    change_json(folder / "config.json", **tiles)
    for path in ROOT.glob("*.py"):
        shutil.copy(path, folder)
    assert type(load(folder)).__name__ == "InternVLChatModel", "though its config.json does not name this Auto class"
    clip = {"feature_extractor_type": "CLIPFeatureExtractor", "size": 448, "crop_size": 448, "do_center_crop": True}
    for _ in range(2):
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
        assert type(processor).__name__ == "InternVLProcessor"
        expected = (1, False, 56) if is_v1_2 else (2, True, 56)
        images = processor.image_processor
        assert (images.max_tiles, images.use_thumbnail, images.tile_size) == expected
        assert AutoProcessor.from_pretrained(folder, trust_remote_code=True, max_num=1).image_processor.max_tiles == 1
        (folder / "preprocessor_config.json").write_text(json.dumps(clip), "utf-8")


def refusal(folder, capsys):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert adopt.main([str(folder)]) == 1
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before, "unchanged"
    return capsys.readouterr().err


def without_config(folder):
    (folder / "config.json").unlink()


def without_weights(folder):
    (folder / "model.safetensors").unlink()


def without_tokenizer(folder):
    for name in ("tokenizer_config.json", "added_tokens.json"):
        (folder / name).unlink(missing_ok=True)


def native(folder):
    change_json(folder / "config.json", model_type="internvl")


def of_another_language_model(folder):
    config = json.loads((folder / "config.json").read_text("utf-8"))
    change_json(folder / "config.json", llm_config=config["llm_config"] | {"model_type": "qwen3"})


def renamed_weights(rename):
    def change(folder):
        path = folder / "model.safetensors"
        save_file({rename(name): value for name, value in load_file(path).items()}, path, metadata={"format": "pt"})

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_config, "has no config.json; expected a folder with a published model: download it first"),
        (without_weights, "has no weights; expected *.safetensors or pytorch_model*.bin"),
        (without_tokenizer, "names the id of <IMG_CONTEXT>; expected the checkpoint's own tokenizer"),
        (native, "has the model type 'internvl': in Transformers' own format (the -HF repositories)"),
        (of_another_language_model, "the language model is not the one that llm_config describes"),
        (
            renamed_weights(lambda name: name.replace("q_proj", "q_proj.base_layer")),
            "LoRA adapters that are not merged",
        ),
        (renamed_weights(lambda name: name.replace("mlp1.", "mlp2.")), "InternVL3.5-Flash's, whose router"),
        (renamed_weights(lambda name: name.replace("vision_model.", "vision_ve.")), "such as Mono-InternVL's"),
    ],
)
def test_what_cannot_work_is_refused_in_a_sentence(folder, capsys, change, message):
    change(folder)
    assert message in refusal(folder, capsys)


def test_an_unknown_prompt_format_is_refused(folder, capsys):
    change_json(folder / "config.json", template="vicuna_v1.1")
    assert "template is 'vicuna_v1.1'; known are" in refusal(folder, capsys)
