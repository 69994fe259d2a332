"""The folder loads as users load it: through the Auto classes, with the code that Transformers copies and imports.

Most of it runs on the embedded checkpoint; the published tokenizer and configuration come with the recorded answers.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from internvl_chat.modeling_internvl_chat import InternVLChatModel
from PIL import Image
from tiny_models import LOGITS
from torch.testing import assert_close
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
)

# `transformers.AutoImageProcessor` is a dummy without torchvision in some 5.x releases, this one is not.
from transformers.models.auto.image_processing_auto import AutoImageProcessor


ROOT = Path(__file__).resolve().parent.parent
TRUST = {"trust_remote_code": True}
FLOAT = {"dtype": torch.float32, "trust_remote_code": True}
MODEL_CLASSES = (AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText)
REPOSITORY = "someone/InternVL-tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"

PICTURE = Image.new("RGB", (90, 40), "red")
CONVERSATION = [
    {"role": "user", "content": [{"type": "image", "image": PICTURE}, {"type": "text", "text": "What colour is it?"}]}
]


def chat_inputs(processor):
    return processor.apply_chat_template(
        CONVERSATION, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )


def module_of(thing):
    return type(thing).__module__.split(".")


@pytest.fixture(scope="module")
def check_tiny(tiny_folder):
    """Compare a loaded model with the embedded checkpoint read by the class itself."""
    config = json.loads((tiny_folder / "config.json").read_text("utf-8"))
    tile_tokens = (config["force_image_size"] // 14 // 2) ** 2
    inputs = {
        "input_ids": torch.tensor([[1, *[config["image_token_id"]] * tile_tokens, 30, 31, 32]]),
        "pixel_values": torch.randn(1, 3, config["force_image_size"], config["force_image_size"]),
    }
    with torch.no_grad():
        expected = InternVLChatModel.from_pretrained(tiny_folder, dtype=torch.float32)(**inputs).logits

    @torch.no_grad()
    def check(model):
        assert type(model).__name__ == "InternVLChatModel"
        assert module_of(model)[0] == "transformers_modules"
        assert_close(model(**inputs).logits, expected, atol=1e-5, rtol=0.0)

    return check


@pytest.fixture(scope="module")
def hub_cache(tiny_folder, tmp_path_factory):
    """A download cache that holds the folder as a repository of the Hub."""
    cache = tmp_path_factory.mktemp("hub_cache")
    repository = cache / f"models--{REPOSITORY.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    shutil.copytree(tiny_folder, repository / "snapshots" / COMMIT)
    return cache


# From a local folder.


@pytest.mark.parametrize("auto_class", MODEL_CLASSES)
def test_models_from_a_local_folder(tiny_folder, auto_class, check_tiny):
    check_tiny(auto_class.from_pretrained(tiny_folder, **FLOAT))


def test_config_from_a_local_folder(tiny_folder):
    config = AutoConfig.from_pretrained(tiny_folder, **TRUST)
    assert type(config).__name__ == "InternVLChatConfig"
    assert config.llm_config.model_type == "internlm2"


@pytest.mark.parametrize(
    ("options", "name"), [({}, "InternLM2TokenizerFast"), ({"backend": "sentencepiece"}, "InternLM2Tokenizer")]
)
def test_tokenizer_from_a_local_folder(tiny_folder, options, name):
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder, **options, **TRUST)
    assert type(tokenizer).__name__ == name
    first, *_, last = tokenizer("red<IMG_CONTEXT>").input_ids
    assert (first, last) == (1, AutoConfig.from_pretrained(tiny_folder, **TRUST).image_token_id)


def test_processors_from_a_local_folder(tiny_folder):
    image_processor = AutoImageProcessor.from_pretrained(tiny_folder, **TRUST)
    assert type(image_processor).__name__ == "InternVLImageProcessor"
    processor = AutoProcessor.from_pretrained(tiny_folder, **TRUST)
    assert type(processor).__name__ == "InternVLProcessor"
    inputs = chat_inputs(processor)
    assert set(inputs) == {"input_ids", "attention_mask", "pixel_values"}
    assert inputs["pixel_values"].shape == (3, 3, 224, 224)  # 2 × 1 tiles and the thumbnail
    assert (inputs["input_ids"] == processor.image_token_id).sum() == 3 * 64


# From the cache of the Hub.


@pytest.mark.parametrize("auto_class", MODEL_CLASSES)
def test_models_from_the_hub_cache(hub_cache, auto_class, check_tiny):
    model = auto_class.from_pretrained(REPOSITORY, cache_dir=hub_cache, **FLOAT)
    assert module_of(model)[-2:] == [COMMIT, "modeling_internvl_chat"]
    check_tiny(model)


def test_everything_else_from_the_hub_cache(hub_cache):
    classes = (AutoConfig, AutoTokenizer, AutoImageProcessor, AutoProcessor)
    things = [auto_class.from_pretrained(REPOSITORY, cache_dir=hub_cache, **TRUST) for auto_class in classes]
    assert [type(thing).__name__ for thing in things] == [
        "InternVLChatConfig",
        "InternLM2TokenizerFast",
        "InternVLImageProcessor",
        "InternVLProcessor",
    ]
    assert {module_of(thing)[-2] for thing in things} == {COMMIT}
    assert chat_inputs(things[-1])["pixel_values"].shape == (3, 3, 224, 224)


def test_a_pinned_revision(hub_cache, check_tiny):
    check_tiny(AutoModel.from_pretrained(REPOSITORY, revision=COMMIT, cache_dir=hub_cache, **FLOAT))


# From a subfolder: code in the root, data below, as in this repository.


@torch.no_grad()
def test_subfolder(check_tiny):
    options = {"subfolder": "tiny", **TRUST}
    config = AutoConfig.from_pretrained(ROOT, **options)
    processor = AutoProcessor.from_pretrained(ROOT, **options)
    model = AutoModelForImageTextToText.from_pretrained(ROOT, subfolder="tiny", **FLOAT)
    check_tiny(model)
    tokenizer = AutoTokenizer.from_pretrained(ROOT, **options)
    ids = {config.image_token_id, processor.image_token_id, tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")}
    assert ids == {model.config.image_token_id}
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in model.generation_config.eos_token_id  # not the root's
    inputs = chat_inputs(processor)
    tokens = model.generate(**inputs, max_new_tokens=20, do_sample=False)
    (answer,) = processor.post_process_image_text_to_text(tokens[:, inputs["input_ids"].shape[1] :])
    assert answer
    assert answer == model.chat(tokenizer, inputs["pixel_values"], "What colour is it?", {"max_new_tokens": 20})


def test_subfolder_of_the_hub_cache(tmp_path, check_tiny):
    snapshot = tmp_path / f"models--{REPOSITORY.replace('/', '--')}" / "snapshots" / COMMIT
    shutil.copytree(ROOT / "tiny", snapshot / "tiny")
    for file in (*ROOT.glob("*.py"), *ROOT.glob("*.json"), *ROOT.glob("*.jinja")):
        shutil.copy(file, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(COMMIT)
    options = {"subfolder": "tiny", "cache_dir": tmp_path, **TRUST}
    model = AutoModelForImageTextToText.from_pretrained(REPOSITORY, dtype=torch.float32, **options)
    check_tiny(model)
    tokenizer, processor = (one.from_pretrained(REPOSITORY, **options) for one in (AutoTokenizer, AutoProcessor))
    assert processor.image_token_id == model.config.image_token_id
    assert chat_inputs(processor)["pixel_values"].shape == (3, 3, 224, 224)
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in model.generation_config.eos_token_id


# As it was published.


@pytest.fixture
def check_golden(golden_case):
    tensors, _ = golden_case("c01_v15_26b")

    @torch.no_grad()
    def check(model):
        logits = model(pixel_values=tensors["pixel_values"], input_ids=tensors["input_ids"]).logits
        assert_close(logits[:, -1], tensors["logits.last"], **LOGITS)

    return check


def test_published_files(hub_folder, check_golden):
    check_golden(AutoModel.from_pretrained(hub_folder, attn_implementation="eager", **FLOAT))
    processor = AutoProcessor.from_pretrained(hub_folder, **TRUST)
    assert processor.tokenizer("Hello<IMG_CONTEXT>").input_ids == [1, 9843, 92546]
    inputs = chat_inputs(processor)
    assert inputs["pixel_values"].shape == (3, 3, 112, 112)
    assert (inputs["input_ids"] == 92546).sum() == 3 * 16


@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForCausalLM])
def test_published_config_loads_unchanged(hub_folder, goldens, tmp_path, check_golden, auto_class):
    folder = tmp_path / "published"
    shutil.copytree(hub_folder, folder)
    shutil.copyfile(goldens / "c01_v15_26b" / "checkpoint" / "config.json", folder / "config.json")
    auto_map = json.loads((folder / "config.json").read_text("utf-8"))["auto_map"]
    assert set(auto_map) == {"AutoConfig", "AutoModel", "AutoModelForCausalLM"}
    check_golden(auto_class.from_pretrained(folder, attn_implementation="eager", **FLOAT))


# As it is saved.


RELOAD = """
import sys, torch
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

folder, conversation = sys.argv[1], torch.load(sys.argv[2], weights_only=False)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
inputs = processor.apply_chat_template(
    conversation, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
)
with torch.no_grad():
    logits = model(**inputs).logits
torch.save({"logits": logits, "ids": tokenizer("red").input_ids, "modules": sorted(sys.modules)}, sys.argv[3])
"""


@torch.no_grad()
def test_saved_folder_loads_alone(tiny_folder, tmp_path):
    """In a process of its own, with an empty cache of modules, from nothing but what was saved."""
    model = AutoModelForImageTextToText.from_pretrained(tiny_folder, **FLOAT)
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder, **TRUST)
    processor = AutoProcessor.from_pretrained(tiny_folder, **TRUST)
    expected = model(**chat_inputs(processor)).logits

    folder = tmp_path / "saved"
    for thing in (model, tokenizer, processor):
        thing.save_pretrained(folder)
    saved = {file.name for file in folder.iterdir()}
    assert {file.name for file in ROOT.glob("*.py")} <= saved
    assert {"tokenizer.model", "chat_template.jinja", "model.safetensors", "generation_config.json"} <= saved
    auto_map = json.loads((folder / "config.json").read_text("utf-8"))["auto_map"]
    assert auto_map["AutoConfig"] == "configuration_internvl_chat.InternVLChatConfig"
    assert auto_map["AutoModelForImageTextToText"] == "modeling_internvl_chat.InternVLChatModel"

    torch.save(CONVERSATION, tmp_path / "conversation.pt")
    subprocess.run(
        [sys.executable, "-c", RELOAD, folder, tmp_path / "conversation.pt", tmp_path / "result.pt"],
        check=True,
        cwd=tmp_path,
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"},
    )
    result = torch.load(tmp_path / "result.pt")
    assert_close(result["logits"], expected, atol=1e-5, rtol=0.0)
    assert result["ids"] == tokenizer("red").input_ids
    assert not {"torchvision", "flash_attn", "timm", "einops", "peft"} & set(result["modules"])
