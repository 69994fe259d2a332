"""Two processes that share the weights say what one says."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from internvl_chat.configuration_internvl_chat import InternVLChatConfig
from internvl_chat.modeling_internvl_chat import InternVLChatModel
from internvl_chat.tokenization_internlm2 import InternLM2Tokenizer
from tiny_models import GREEDY, IMAGE_TOKEN, TINY_LLM, TINY_VISION, prompt, tiles, tiny_model


TESTS = Path(__file__).resolve().parent
TOKENIZER = TESTS.parent / "tiny"
QUESTIONS = ("What is it?", "And what else?")
# Runs in each process: load the model divided, answer, say what is divided.
WORKER = """
import os, sys
import torch

folder, tests = sys.argv[1:]
sys.path.insert(0, tests)
import conftest
from internvl_chat.modeling_internvl_chat import InternVLChatModel
from test_tensor_parallel import conversation

model = InternVLChatModel.from_pretrained(folder, tp_plan="auto")
inputs = torch.load(os.path.join(folder, "inputs.pt"))
options = inputs.pop("options")
with torch.no_grad():
    logits = model(**inputs).logits
parts = {}
for name, parameter in model.named_parameters():
    parts[name] = tuple((parameter.to_local() if hasattr(parameter, "to_local") else parameter).shape)
answer = {"logits": logits, "tokens": model.generate(**inputs, **options), "parts": parts}
answer["conversation"] = conversation(model, inputs["pixel_values"])
torch.save(answer, os.path.join(folder, f"answer{os.environ['RANK']}.pt"))
torch.distributed.destroy_process_group()
"""


def chatting_model():
    """The tiny model with the vocabulary of the embedded checkpoint, which is always at hand."""
    torch.manual_seed(0)
    llm = {"model_type": "internlm2", **TINY_LLM, "vocab_size": 840, "max_position_embeddings": 1024}
    return InternVLChatModel(InternVLChatConfig(vision_config=TINY_VISION, llm_config=llm, image_token_id=833)).eval()


def conversation(model, pixel_values):
    """Return the history of a session, which reads the picture once and the first turn once."""
    tokenizer = InternLM2Tokenizer.from_pretrained(TOKENIZER)
    with model.start_chat(tokenizer, pixel_values, {"max_new_tokens": 6, "do_sample": False}, system="") as session:
        for question in QUESTIONS:
            session.chat(question)
        return session.history


def test_two_processes_say_what_one_says(tmp_path):
    model = chatting_model()
    model.save_pretrained(tmp_path)
    input_ids = prompt(2).masked_fill(prompt(2) == IMAGE_TOKEN, model.config.image_token_id)
    inputs = {"input_ids": input_ids, "pixel_values": tiles(2)}
    options = {"max_new_tokens": 8, **GREEDY}
    torch.save({**inputs, "options": options}, tmp_path / "inputs.pt")
    (tmp_path / "worker.py").write_text(WORKER, "utf-8")
    subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *(tmp_path / "worker.py", tmp_path, TESTS),
        ],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"},
        timeout=300,
    )
    with torch.no_grad():
        logits, tokens = model(**inputs).logits, model.generate(**inputs, **options)
    spoken = conversation(model, inputs["pixel_values"])
    assert [question.rpartition("\n")[2] for question, _ in spoken] == list(QUESTIONS)
    for rank in (0, 1):
        answer = torch.load(tmp_path / f"answer{rank}.pt")
        torch.testing.assert_close(answer["logits"], logits, atol=1e-4, rtol=1e-4)
        assert torch.equal(answer["tokens"], tokens)
        assert answer["conversation"] == spoken
        # 2 key/value heads, each with 2 query heads, a key and a value of 6 numbers: one of them for each process.
        assert answer["parts"]["language_model.model.layers.0.attention.wqkv.weight"] == (24, 24)
        assert answer["parts"]["language_model.model.layers.0.attention.wo.weight"] == (24, 12)
        assert answer["parts"]["language_model.model.layers.0.attention_norm.weight"] == (24,)


def test_what_is_divided():
    """The plan of the whole model, with the names of its parameters."""
    model = tiny_model()
    layer, mlp = "language_model.model.layers.*.", "vision_model.encoder.layers.*.mlp."
    assert type(model.language_model)._tp_plan["output"].startswith("colwise_")
    assert {name: style for name, style in model._tp_plan.items() if name.startswith(("vis", "language_model.m"))} == {
        f"{layer}attention.wqkv": "colwise",
        f"{layer}attention.wo": "rowwise",
        f"{layer}feed_forward.w1": "colwise",
        f"{layer}feed_forward.w3": "colwise",
        f"{layer}feed_forward.w2": "rowwise",
        f"{mlp}fc1": "colwise",
        f"{mlp}fc2": "rowwise",
    }
