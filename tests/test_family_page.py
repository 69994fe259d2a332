"""docs/family.md: its table is what the layouts and the arithmetic say, and its blocks run."""

import copy
import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from family import published_layouts, small_layouts, write_folder
from internvl_chat.configuration_internvl_chat import InternVLChatConfig
from internvl_chat.modeling_internvl_chat import InternVLChatModel
from internvl_chat.quantization_internvl import UNQUANTIZED
from test_layouts import FAST
from torch import nn

from benchmarks.measure import GIB
from benchmarks.memory_table import PRECISIONS
from examples import adopt


pytestmark = pytest.mark.newest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "family.md").read_text("utf-8")
LAYOUTS = published_layouts()
LANGUAGE_MODELS = {
    "llama": "Llama",
    "internlm2": "InternLM2",
    "internlm3": "InternLM3",
    "phi3": "Phi-3",
    "qwen2": "Qwen2.5",
    "qwen3": "Qwen3",
    "qwen3_moe": "Qwen3-MoE",
    "gpt_oss": "GPT-OSS",
}
# The cases of the goldens that together have the parts of a checkpoint: the language model, the kind of vision encoder
# and the prompt format. The others have parts of which no answers were recorded.
GOLDENS = {
    "InternVL-Chat-V1-2": "c03, c05",
    "InternVL-Chat-V1-5": "c01, c08, c09, c11",
    "Mini-InternVL-Chat-2B-V1-5": "c02",
    "InternVL2-1B": "c05, c06",
    "InternVL2-2B": "c02",
    "InternVL2-8B(-MPO)": "c02",
    "InternVL2-26B": "c01",
    "InternVL2-40B": "c01, c05",
    "InternVL2_5-2B": "c02, c06",
    "InternVL2_5-8B": "c02, c06",
    "InternVL2_5-26B": "c01, c14",
    "InternVL3_5-38B": "c14, c16",
    "InternVL3_5-30B-A3B": "c17",
    "InternVL3_5-241B-A28B": "c14, c17",
    "InternVL3_5-GPT-OSS-20B-A4B": "c18",
    **dict.fromkeys(("InternVL2_5-1B", "InternVL2_5-4B"), "c06"),
    **dict.fromkeys(("InternVL2_5-38B", "InternVL2_5-78B"), "c14"),
    **dict.fromkeys(("InternVL3-1B", "InternVL3-2B", "InternVL3-8B", "InternVL3-14B"), "c20"),
    **dict.fromkeys(("InternVL3-38B", "InternVL3-78B"), "c14, c20"),
    **dict.fromkeys(
        ("InternVL3_5-1B", "InternVL3_5-2B", "InternVL3_5-4B", "InternVL3_5-8B", "InternVL3_5-14B"), "c16"
    ),
}


def weights_in(model, precision):
    """Return the GiB of the weights, with the language model's matrices in a precision."""
    stored_as, total = PRECISIONS[precision], sum(one.numel() * 2 for one in model.parameters())
    for name, module in model.named_modules():
        if stored_as and isinstance(module, nn.Linear) and not name.startswith(UNQUANTIZED):
            stored = sum(math.prod(shape) * dtype.itemsize for shape, dtype in stored_as(*module.weight.shape))
            total += stored - 2 * module.weight.numel()
    return f"{total / GIB:.1f}"


def row(name):
    """Return the line of the table for a layout."""
    published = LAYOUTS[name][0]
    config = InternVLChatConfig(**copy.deepcopy(published))
    with torch.device("meta"):
        model = InternVLChatModel(config)
    billions = sum(parameter.numel() for parameter in model.parameters()) / 1e9
    tiles = f"1 to {config.max_dynamic_patch}, thumbnail" if config.dynamic_image_size else "1"
    verified = f"goldens {GOLDENS[name]}" if name in GOLDENS else "layout"
    cells = [
        name,
        f"{billions:.2f}",
        LANGUAGE_MODELS[config.llm_config.model_type],
        f"`{config.template}`",
        tiles,
        verified,
    ]
    return "| " + " | ".join([*cells, *(weights_in(model, precision) for precision in PRECISIONS)]) + " |"


@pytest.mark.usefixtures("goldens")
def test_there_is_a_row_for_each_checkpoint():
    rows = [
        line.split(" | ")[0].removeprefix("| ") for line in PAGE.splitlines() if re.match(r"\| (Mini-)?InternVL", line)
    ]
    assert rows == list(LAYOUTS)
    assert len(rows) == 35


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in LAYOUTS]
)
def test_a_row(name):
    assert row(name) in PAGE.splitlines()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.mark.usefixtures("goldens")
def test_the_blocks_run(tmp_path, monkeypatch, capsys):
    """On a small random InternVL3.5, and the same as a reward model."""
    monkeypatch.chdir(ROOT)
    folder = write_folder(tmp_path / "InternVL3_5-8B", small_layouts()["InternVL3_5-1B"])
    reward = Path(shutil.copytree(folder, tmp_path / "VisualPRM-8B"))
    config = json.loads((reward / "config.json").read_text("utf-8"))
    (reward / "config.json").write_text(json.dumps(config | {"architectures": ["InternVLRewardModel"]}), "utf-8")
    (command,) = blocks("bash")
    for line in command.splitlines():
        assert line.startswith("python -m examples.adopt")
        arguments = line.removeprefix("python -m examples.adopt").split()
        arguments = [str(tmp_path / one) if one in ("InternVL3_5-8B", "VisualPRM-8B") else one for one in arguments]
        assert adopt.main(arguments) == 0, capsys.readouterr().err
    namespace = {}
    for block in [*blocks("python"), *blocks("py")]:
        code = block.replace('"InternVL3_5-8B"', repr(str(folder))).replace('"VisualPRM-8B"', repr(str(reward)))
        code = code.replace("max_new_tokens=1024", "max_new_tokens=2").replace(
            '"max_new_tokens": 1024', '"max_new_tokens": 2'
        )
        exec(compile(code, "family.md", "exec"), namespace)
    printed = capsys.readouterr().out
    assert "of 8 answers" in printed
