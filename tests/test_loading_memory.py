"""Loading takes little more memory than the weights."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from internvl_chat.configuration_internvl_chat import InternVLChatConfig
from internvl_chat.modeling_internvl_chat import InternVLChatModel
from test_modeling_internvl_chat import TINY_VISION


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
# Loads in a process of its own, first a small model, so that everything is imported. Prints how far memory rises above
# what it was, in bytes.
WORKER = """
import sys

small, folder, tests = sys.argv[1:]
sys.path.insert(0, tests)
import conftest
import torch
from internvl_chat.modeling_internvl_chat import InternVLChatModel

def resident(name):
    (line,) = (line for line in open("/proc/self/status") if line.startswith(name))
    return int(line.split()[1]) * 1024

def load(folder):
    model = InternVLChatModel.from_pretrained(folder, dtype=torch.bfloat16)
    # Weights that are pages of a file count once they are read; a byte of each page will do.
    return model, [parameter.view(torch.uint8).flatten()[::4096].max().item() for parameter in model.parameters()]

load(small)
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
before = resident("VmRSS")
kept = load(folder)
print(resident("VmHWM") - before)
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


def test_16_bits(checkpoint):
    folders, weights = checkpoint
    result = subprocess.run(
        [sys.executable, "-c", WORKER, *folders, TESTS],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"},
        timeout=600,
    )
    assert weights > 5e8, "enough to stand out"
    assert 0.9 * weights < int(result.stdout.split()[-1]) < 1.2 * weights
