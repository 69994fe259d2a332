"""Loading takes little more memory than the weights."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from internvl_chat.configuration_internvl_chat import InternVLChatConfig
from internvl_chat.modeling_internvl_chat import InternVLChatModel
from tiny_models import TINY_VISION


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read where Linux has them"),
]

TESTS = Path(__file__).resolve().parent
# 300 million parameters, nearly all in the language model's layers.
LLM = {
    "model_type": "internlm2",
    "vocab_size": 8192,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 18,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
}
# Loads in a process of its own, first a small model, so that everything is imported, and prints bytes: how far memory
# rises above what it was, pages of the files included and not, and what the tensors alive afterwards take.
WORKER = """
import gc, sys, threading

small, folder, tests, quantization = sys.argv[1:]
sys.path.insert(0, tests)
import conftest
import torch
from internvl_chat.modeling_internvl_chat import InternVLChatModel
from transformers import BitsAndBytesConfig

options = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
config = BitsAndBytesConfig(**options, bnb_4bit_compute_dtype=torch.bfloat16) if quantization == "nf4" else None

def resident(name):
    (line,) = (line for line in open("/proc/self/status") if line.startswith(name))
    return int(line.split()[1]) * 1024

def load(folder):
    model = InternVLChatModel.from_pretrained(folder, dtype=torch.bfloat16, quantization_config=config)
    # Weights that are pages of a file count once they are read; a byte of each page will do.
    return model, [parameter.view(torch.uint8).flatten()[::4096].max().item() for parameter in model.parameters()]

def living():
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    storages = [tensor.untyped_storage() for tensor in tensors if tensor.device.type == "cpu"]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())

def watch():
    while not loaded.wait(0.002):  # seconds; the kernel keeps no peak of this number
        anonymous.append(resident("RssAnon"))

load(small)
gc.collect()
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
before, anonymous, loaded = resident("VmRSS"), [resident("RssAnon")], threading.Event()
watcher = threading.Thread(target=watch)
watcher.start()
kept = load(folder)
anonymous.append(resident("RssAnon"))
loaded.set()
watcher.join()
print(resident("VmHWM") - before, max(anonymous) - anonymous[0], living())
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small and a large folder with shards of 50 MB, and the bytes of the large one's weights."""
    folders = [tmp_path_factory.mktemp(name) for name in ("small", "large")]
    for folder, llm in zip(folders, (LLM | {"num_hidden_layers": 1, "vocab_size": 100}, LLM), strict=True):
        with torch.device("meta"):
            model = InternVLChatModel(InternVLChatConfig(vision_config=TINY_VISION, llm_config=llm))
        model = model.to(torch.bfloat16).to_empty(device="cpu")
        for parameter in model.parameters():
            parameter.data.fill_(0.01)
        model.save_pretrained(folder, max_shard_size="50MB")
    return folders, sum(parameter.nbytes for parameter in model.parameters())


def load_elsewhere(folders, quantization, **environment):
    """Load the large folder, quantized or not, in a new process; return the numbers that it prints."""
    result = subprocess.run(
        [sys.executable, "-c", WORKER, *folders, TESTS, quantization],
        check=True,
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1",
            **environment,
        },
        timeout=600,
    )
    return [int(number) for number in result.stdout.split()[-3:]]


def test_16_bits(checkpoint):
    folders, weights = checkpoint
    peak, _, _ = load_elsewhere(folders, "none")
    assert weights > 5e8, "enough to stand out"
    assert 0.9 * weights < peak < 1.2 * weights


def test_4_bits(checkpoint):
    """Never the 16-bit weights at once: only files hold them, whose pages the system drops when it needs room."""
    pytest.importorskip("bitsandbytes")
    folders, weights = checkpoint
    # See "Quantizing on the CPU" in docs/memory.md: glibc would keep what the quantization on the CPU has freed.
    _, anonymous, alive = load_elsewhere(folders, "nf4", MALLOC_MMAP_THRESHOLD_=str(2**20))
    with torch.device("meta"):
        layers = InternVLChatModel(InternVLChatConfig.from_pretrained(folders[1])).language_model.model.layers
    linear = [module.weight for module in layers.modules() if isinstance(module, torch.nn.Linear)]
    # Half a byte a weight, a byte of scale for every 64 and a float of scale for every 256 of these.
    quantized = sum(weight.numel() * (1 / 2 + 1 / 64 + 4 / 64 / 256) for weight in linear)
    kept = weights - sum(2 * weight.numel() for weight in linear)
    assert quantized + kept < 0.35 * weights
    # 1 % for code books and the tensors of torch itself.
    assert quantized + kept <= alive < 1.01 * (quantized + kept) + 2**20
    assert 0.8 * quantized < anonymous < 0.5 * weights
