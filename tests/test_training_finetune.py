"""Fine-tuning: conversations become the right tokens and labels, and a run ends in a folder that loads as before."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import AutoModelForImageTextToText, AutoProcessor, TrainerCallback


peft = pytest.importorskip("peft")

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from training import conversations, finetune, merge, trainer  # noqa: E402
from training.folders import load_model  # noqa: E402
from training.prepare import TINY  # noqa: E402


pytestmark = pytest.mark.newest

COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220)}


@pytest.fixture(scope="module")
def folder(hub_folder, tmp_path_factory):
    """A small published checkpoint that says it is float32, so that nothing is rounded on the way."""
    folder = tmp_path_factory.mktemp("float") / "InternVL"
    shutil.copytree(hub_folder, folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["torch_dtype"] = config["llm_config"]["torch_dtype"] = config["vision_config"]["torch_dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return folder


@pytest.fixture(scope="module")
def processor(folder):
    return AutoProcessor.from_pretrained(folder, trust_remote_code=True)


@pytest.fixture(scope="module")
def collate(processor):
    return processor.data_collator(max_tiles=6)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Pictures of one colour, one tile each but for the wide one, which has 2 and a thumbnail."""
    pictures = tmp_path_factory.mktemp("pictures")
    for name, colour in COLOURS.items():
        Image.new("RGB", (112, 112), colour).save(pictures / f"{name}.png")
    Image.new("RGB", (224, 112), "white").save(pictures / "wide.png")
    return pictures


@pytest.fixture(scope="module")
def data(pictures):
    """A file of conversations: pictures, several pictures, and none."""
    lines = [
        {"image": f"{name}.png", "conversations": turns(("<image>\nWhat colour is it?", name))} for name in COLOURS
    ]
    lines += [
        {"conversations": turns(("Who are you?", "A model."), ("Sure?", "Yes."))},
        {"image": ["red.png", "wide.png"], "conversations": turns(("<image>\n<image>\nThe same?", "no"))},
    ]
    return write(pictures / "data.jsonl", lines)


def turns(*pairs):
    return [
        {"from": role, "value": text}
        for question, answer in pairs
        for role, text in (("human", question), ("gpt", answer))
    ]


def write(file, lines):
    file.write_text("\n".join(json.dumps(line) for line in lines) + "\n", "utf-8")
    return file


def read(tmp_path, *lines, image_folder=None):
    return list(conversations.read_conversations(write(tmp_path / "some.jsonl", lines), image_folder))


def learned(processor, sample):
    """The texts that are learned."""
    is_learned = sample["labels"] != finetune.IGNORED_LABEL
    assert torch.equal(sample["labels"][is_learned], sample["input_ids"][is_learned])
    starts = is_learned & ~torch.cat([torch.tensor([False]), is_learned[:-1]])
    spans = sample["input_ids"][is_learned].split(torch.bincount(starts.cumsum(0)[is_learned])[1:].tolist())
    return [processor.tokenizer.decode(span).strip() for span in spans]


def arguments(folder, data, run, **options):
    options = {"max_steps": 6, "logging_steps": 1, "learning_rate": 5e-3, "disable_tqdm": True} | options
    return finetune.FinetuneArguments(model=str(folder), data=[str(data)], output_dir=str(run), **options)


def logits_of(model, sample):
    names = ("input_ids", "pixel_values")
    model.eval()
    with torch.no_grad():
        return model(**{name: sample[name][None] if name == "input_ids" else sample[name] for name in names}).logits


# Conversations.


def test_only_answers_are_learned(data, collate, processor):
    samples = [collate.encode(one) for one in conversations.read_conversations(data)]
    assert [learned(processor, sample) for sample in samples] == [
        ["red<|im_end|>"],
        ["green<|im_end|>"],
        ["blue<|im_end|>"],
        ["A model.<|im_end|>", "Yes.<|im_end|>"],
        ["no<|im_end|>"],
    ]
    assert [len(sample.get("pixel_values", ())) for sample in samples] == [1, 1, 1, 0, 4]


def test_tokens_are_the_processors_own(tmp_path, collate, processor, pictures):
    picture = str(pictures / "wide.png")
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "What <|im_end|> is <image>?"}]
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": content},
        {"role": "assistant", "content": "White,\n圆形 é <IMG_CONTEXT>"},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]},
    ]
    (one,) = read(tmp_path, {"messages": messages})
    sample = collate.encode(one)
    expected = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt", max_tiles=6
    )
    assert torch.equal(sample["input_ids"], expected["input_ids"][0])
    assert torch.equal(sample["pixel_values"], expected["pixel_values"])
    assert (sample["input_ids"] == processor.image_token_id).sum() == 3 * 16
    assert collate.length(one) == len(sample["input_ids"])


def test_ways_to_name_images(tmp_path, pictures, collate):
    named = [{"type": "image", "image": "red.png"}, {"type": "text", "text": "Colour?"}]
    listed = [{"type": "image"}, {"type": "text", "text": "Colour?"}]
    answer = {"role": "assistant", "content": "red"}
    ways = read(
        tmp_path,
        {"image": "red.png", "conversations": turns(("<image>\nColour?", "red"))},
        {"image": "red.png", "conversations": turns(("Colour?", "red"))},
        {"messages": [{"role": "user", "content": named}, answer]},
        {"messages": [{"role": "user", "content": listed}, answer], "images": ["red.png"]},
        {"messages": [{"role": "user", "content": "<image>\nColour?"}, answer], "images": [str(pictures / "red.png")]},
        image_folder=pictures,
    )
    first, *others = (collate.encode(one) for one in ways)
    for other in others:
        assert torch.equal(other["input_ids"], first["input_ids"])
        assert torch.equal(other["pixel_values"], first["pixel_values"])
    urls = read(tmp_path, {"image": "https://example.org/a.png", "conversations": turns(("<image>", "a"))})
    assert urls[0]["images"] == ["https://example.org/a.png"]
    (clip,) = read(tmp_path, {"messages": [{"role": "user", "content": [{"type": "video", "path": "a.mp4"}]}, answer]})
    assert clip["messages"][0]["content"] == [{"type": "video", "path": str(tmp_path / "a.mp4")}]
    (clip,) = read(tmp_path, {"video": "a.mp4", "conversations": turns(("<video>\nWhat?", "a"))})
    assert clip["videos"] == [str(tmp_path / "a.mp4")]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ({"text": "hello"}, r"some.jsonl:2 is not a conversation \(KeyError: 'messages'\); expected an object with"),
        ({"conversations": [{"from": "robot", "value": "x"}]}, "found role 'robot', expected one of human, gpt,"),
        (
            {"conversations": turns(("<image>", "x"))},
            "<image> marks the place of an image, but there is none",
        ),
        ({"conversations": turns(("<video>", "x"))}, "<video> marks the place of a video, but there is none"),
    ],
)
def test_lines_that_are_no_conversation(tmp_path, line, problem):
    with pytest.raises(ValueError, match=problem):
        read(tmp_path, {"conversations": turns(("a", "b"))}, line)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ({"conversations": [{"from": "human", "value": "x"}]}, ":1: No message of 1 has the role assistant"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "x"}]},
            ":1: There are 0 images for 1 placeholders before the last answer",
        ),
        (
            {"image": "red.png", "conversations": turns(("<image><image>", "x"))},
            ":1: There are 1 images for 2 placeholders .* or write <image> once for each in a question",
        ),
        (
            {"image": ["red.png"] * 2, "conversations": turns(("<image>", "y"))},
            "There are 2 images for 1 placeholders",
        ),
        ({"image": "gone.png", "conversations": turns(("<image>", "x"))}, r":1: .*gone.png"),
    ],
)
def test_what_does_not_fit_stops_the_run_at_its_start(tmp_path, pictures, collate, line, problem):
    with pytest.raises(ValueError, match=problem):
        conversations.Conversations(read(tmp_path, line, image_folder=pictures), collate, 1000)


def test_what_is_too_long_is_left_out_whole(data, collate, caplog):
    everything = list(conversations.read_conversations(data))
    lengths = [collate.length(one) for one in everything]
    dataset = conversations.Conversations(everything, collate, max(lengths) - 1)
    assert dataset.lengths == lengths[:-1]
    assert f"1 conversations are longer than {max(lengths) - 1} tokens and are left out." in caplog.text
    with pytest.raises(ValueError, match="No conversation is left of 5, .* raise --max-length or lower --max-tiles"):
        conversations.Conversations(everything, collate, 10)
    with pytest.raises(ValueError, match="The data files hold no conversation; expected one JSON object per line"):
        conversations.Conversations([], collate, 10)


def test_a_batch_is_the_collators(data, collate):
    dataset = conversations.Conversations(conversations.read_conversations(data), collate, 1000)
    batch, expected = collate.join([*dataset]), collate([*conversations.read_conversations(data)])
    assert batch.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in batch.items())
    assert batch["image_flags"].tolist() == [1] * 7


def test_answers_may_share_the_loss_by_the_square_root_of_their_length():
    labels = torch.tensor([[-100, 5, 6, -100, 7, -100], [-100, 5, 6, 7, 8, 9]])
    expected = torch.tensor([[0, 2**-0.5, 2**-0.5, 0, 1, 0], [0] + [5**-0.5] * 5])
    assert_close(finetune.square_root_weights(labels), expected)


def test_a_batch_without_images_runs_the_vision_encoder_for_nothing(data, collate, folder):
    model = load_model(folder)
    batch = collate(list(conversations.read_conversations(data))[3:4])
    assert batch["pixel_values"].shape == (1, 3, 112, 112)
    assert batch["image_flags"].tolist() == [0]
    loss = model.train()(**batch).loss
    loss.backward()
    assert all(value.grad is not None for value in model.vision_model.parameters())
    assert not any(value.grad.any() for value in model.mlp1.parameters())
    assert_close(loss, model(input_ids=batch["input_ids"], labels=batch["labels"]).loss)


# What learns.


def test_frozen_parts_do_not_learn(folder, data, tmp_path):
    options = arguments(folder, data, tmp_path, freeze_vision=True, freeze_language=True)
    model = finetune.choose_trained(load_model(folder), options)
    assert {name.split(".")[0] for name, value in model.named_parameters() if value.requires_grad} == {"mlp1"}
    options.freeze_projector = True
    with pytest.raises(ValueError, match="Nothing is left to learn: vision, projector, language are frozen"):
        finetune.choose_trained(model, options)


def test_adapters_sit_on_the_linear_layers_of_their_parts(folder, data, tmp_path):
    options = arguments(folder, data, tmp_path, lora_rank=2, lora_parts=["language", "vision"])
    model = finetune.choose_trained(load_model(folder), options)
    learning = {name for name, value in model.named_parameters() if value.requires_grad}
    assert all(".lora_" in name for name in learning)
    layers = {name.split(".lora_")[0].split(".")[-1] for name in learning}
    assert layers == {"wqkv", "wo", "w1", "w2", "w3", "qkv", "proj", "fc1", "fc2"}
    assert model.peft_config["default"].lora_alpha == 4


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"model": "", "data": []}, "No model and no data given; expected --model FOLDER and --data FILE.jsonl"),
        ({"loss_average": "sqrt"}, "--loss-average is sqrt; expected one of token, square_root"),
        ({"lora_parts": ["tongue"]}, "--lora-parts has tongue; expected some of vision, projector, language"),
    ],
)
def test_options_are_checked(options, problem, tmp_path):
    options = {"model": "m", "data": ["d"], "output_dir": str(tmp_path)} | options
    with pytest.raises(ValueError, match=problem):
        finetune.FinetuneArguments(**options)


# Runs.


def test_lora_learns_merges_and_loads(folder, data, collate, tmp_path, monkeypatch):
    two = write(data.parent / "two.jsonl", [json.loads(line) for line in data.read_text().splitlines()[2:4]])
    options = {
        "--model": folder,
        "--data": two,
        "--output-dir": tmp_path,
        "--lora-rank": 8,
        "--learning-rate": 5e-3,
        "--max-steps": 5,
        "--logging-steps": 1,
        "--per-device-train-batch-size": 2,
        "--activation-checkpointing": True,
    }
    monkeypatch.setattr(sys, "argv", ["finetune", *(str(part) for pair in options.items() for part in pair)])
    finetune.main()
    losses = [json.loads(line)["loss"] for line in (tmp_path / trainer.LOG_FILE).read_text().splitlines()]
    assert losses[-1] < 0.8 * losses[0], losses
    # The folder has everything that the first one had, and loads in the same way.
    result = tmp_path / "model"
    source, written = ({file.name for file in place.iterdir()} for place in (folder, result))
    assert {name for name in source if "safetensors" not in name} <= written
    assert (result / "config.json").read_text() == (folder / "config.json").read_text()
    assert set(load_file(result / "model.safetensors")) == set(load_model(folder).state_dict())
    sample = collate.encode(next(conversations.read_conversations(data)))
    adapted = peft.PeftModel.from_pretrained(load_model(folder), tmp_path / "adapter")
    merged = AutoModelForImageTextToText.from_pretrained(result, trust_remote_code=True)
    assert_close(logits_of(merged, sample), logits_of(adapted, sample), atol=2e-4, rtol=1e-4)
    assert not torch.allclose(logits_of(merged, sample), logits_of(load_model(folder), sample), atol=0.1)
    assert AutoProcessor.from_pretrained(result, trust_remote_code=True).image_processor.tile_size == 112


def test_missing_adapters_are_not_taken_for_zeros(folder, data, tmp_path):
    options = arguments(folder, data, tmp_path, lora_rank=2)
    finetune.choose_trained(load_model(folder), options).save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file(dict(list(load_file(file).items())[1:]), file)
    with pytest.raises(UserWarning, match="Found missing adapter keys"):
        merge.merge(folder, tmp_path / "adapter", tmp_path / "merged")


def test_sharding_that_would_lose_adapters_is_refused(folder, data, tmp_path):
    options = arguments(folder, data, tmp_path, lora_rank=2)
    model = finetune.choose_trained(load_model(folder), options)
    state = SimpleNamespace(fsdp_plugin=SimpleNamespace(activation_checkpointing=True))
    with pytest.raises(ValueError, match="set fsdp_activation_checkpointing to false and pass --activation-check"):
        finetune.check_sharding(model, SimpleNamespace(state=state))


class KilledError(RuntimeError):
    """Stands for a kill."""


class KillAfter(TrainerCallback):
    """Dies at a step."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 4:
            raise KilledError


def test_a_killed_run_goes_on_to_the_same_weights(folder, data, tmp_path, monkeypatch):
    options = {
        "lora_rank": 4,
        "lora_dropout": 0.2,
        "per_device_train_batch_size": 2,
        "train_sampling_strategy": "group_by_length",
        "save_steps": 2,
    }
    finetune.finetune(arguments(folder, data, tmp_path / "whole", **options))
    with monkeypatch.context() as patch:
        callbacks = finetune.FinetuneTrainer.__init__
        patch.setattr(
            finetune.FinetuneTrainer, "__init__", lambda self, **kw: callbacks(self, callbacks=[KillAfter], **kw)
        )
        with pytest.raises(KilledError):
            finetune.finetune(arguments(folder, data, tmp_path / "killed", **options))
    finetune.finetune(arguments(folder, data, tmp_path / "killed", **options))
    whole, resumed = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_all_weights_learn_with_the_other_average(data, tmp_path):
    """In full, on the embedded checkpoint, whose code is one folder up; evaluated as well."""
    options = arguments(
        TINY,
        data,
        tmp_path,
        max_steps=2,
        learning_rate=1e-4,
        max_tiles=1,
        loss_average="square_root",
        gradient_accumulation_steps=2,
        eval_data=[str(data)],
        eval_strategy="steps",
        eval_steps=2,
    )
    result = finetune.finetune(options)
    lines = [json.loads(line) for line in (tmp_path / trainer.LOG_FILE).read_text().splitlines()]
    assert 0 < lines[-1]["eval_loss"] < 20
    before, after = load_states(TINY), load_states(result)
    assert {name for name, value in before.items() if torch.equal(value, after[name])} != set(before)
    assert {value.dtype for value in after.values()} == {torch.bfloat16}
    AutoModelForImageTextToText.from_pretrained(result, trust_remote_code=True)


def load_states(folder):
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


WORKER = f"""
import json, sys
sys.path.insert(0, {str(ROOT)!r})
from accelerate import PartialState
from accelerate.utils import DistributedType
from training import finetune
options = json.loads(sys.argv[1])
if options.pop("fsdp"):
    # Accelerate shards over accelerators alone; the processes' group does not mind.
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    options["accelerator_config"] = {{"use_configured_state": True}}
finetune.finetune(finetune.FinetuneArguments(**options))
"""


def run_two_processes(script, folder, data, run, fsdp, **options):
    """Run two processes that see each a batch; in the first step one of them has no image."""
    yaml = load_config_from_file(str(ROOT / "training" / "accelerate" / "fsdp.yaml")).fsdp_config
    # The names that `accelerate launch` gives to what it reads.
    sharding = {name.upper(): str(value).lower() for name, value in yaml.items()}
    sharding |= {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_AUTO_WRAP_POLICY": yaml["fsdp_auto_wrap_policy"],
        "FSDP_STATE_DICT_TYPE": yaml["fsdp_state_dict_type"],
        "FSDP_TRANSFORMER_CLS_TO_WRAP": yaml["fsdp_transformer_layer_cls_to_wrap"],
    }
    script.write_text(WORKER)
    options |= {"model": str(folder), "data": [str(data)], "output_dir": str(run), "fsdp": fsdp}
    options |= {"max_steps": 3, "logging_steps": 1, "save_steps": 2, "train_sampling_strategy": "sequential"}
    options["activation_checkpointing"] = True
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | (sharding if fsdp else {})
    subprocess.run([*command, json.dumps(options)], check=True, env=environment, timeout=600)
    lines = [json.loads(line) for line in (run / trainer.LOG_FILE).read_text().splitlines()]
    return [line["loss"] for line in lines], load_states(run / "model")


@pytest.mark.slow
@pytest.mark.parametrize("lora_rank", [0, 4])
def test_sharded_processes_learn_what_two_whole_ones_learn(folder, data, tmp_path, lora_rank):
    some = list(map(json.loads, data.read_text().splitlines()))
    mixed = write(data.parent / "mixed.jsonl", [some[3], some[0], some[1], some[3], some[4], some[2]])
    options = {"lora_rank": lora_rank, "lora_dropout": 0.0, "learning_rate": 1e-3}
    losses, states = {}, {}
    for fsdp in (False, True):
        run = tmp_path / str(fsdp)
        losses[fsdp], states[fsdp] = run_two_processes(tmp_path / "w.py", folder, mixed, run, fsdp, **options)
    assert losses[True] == pytest.approx(losses[False], rel=1e-3)
    before = load_model(folder).state_dict()
    assert set(states[True]) == set(before)
    assert any(not torch.equal(value, before[name]) for name, value in states[True].items())
    for name, value in states[True].items():
        assert_close(value, states[False][name], atol=1e-4, rtol=1e-3)


def test_accelerate_reads_the_example_configurations():
    fsdp, zero3 = (
        load_config_from_file(str(ROOT / "training" / "accelerate" / name))
        for name in ("fsdp.yaml", "deepspeed_zero3.yaml")
    )
    assert fsdp.distributed_type == "FSDP"
    assert fsdp.fsdp_config["fsdp_version"] == 2
    assert zero3.distributed_type == "DEEPSPEED"
    assert zero3.deepspeed_config["zero_stage"] == 3
    assert zero3.deepspeed_config["zero3_save_16bit_model"] is True
