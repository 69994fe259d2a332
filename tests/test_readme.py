"""The README's code runs, block after block as a reader would paste it, on a folder that `save_pretrained` made.

Elsewhere run what needs more: the TRL block and its commands (`test_examples_finetune.py`), `make chat`
(`test_tiny.py`), `make demo` (`test_demo.py`).
"""

import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor


pytestmark = pytest.mark.newest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")
PLACEHOLDER = 'path = "InternVL-Chat-V1-5"'


@pytest.fixture(scope="module")
def saved_folder(tiny_folder, tmp_path_factory):
    """What `save_pretrained` leaves: a folder that loads alone."""
    folder = tmp_path_factory.mktemp("saved") / "InternVL"
    AutoModelForImageTextToText.from_pretrained(tiny_folder, trust_remote_code=True, dtype="auto").save_pretrained(
        folder
    )
    AutoProcessor.from_pretrained(tiny_folder, trust_remote_code=True).save_pretrained(folder)
    return folder


def blocks(language, text=README):
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def run(code, namespace):
    exec(compile(code, "README.md", "exec"), namespace)


def test_every_block_is_of_a_kind_that_is_run():
    """A new block must be run by a test: count it here when it is."""
    fences = re.findall(r"```(\w*)\n.*?```", README, flags=re.DOTALL)
    assert Counter(fences) == {"python": 6, "py": 4, "bash": 3, "bibtex": 1}


def test_python_blocks(saved_folder, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)  # the examples name pictures of the repository
    first, *others = blocks("python")
    assert first.count(PLACEHOLDER) == 1
    namespace = {}
    for block in (first.replace(PLACEHOLDER, f"path = {str(saved_folder)!r}"), *others):
        run(block, namespace)
    assert "red" in capsys.readouterr().out.splitlines()[0]


@pytest.fixture
def memory_blocks(saved_folder, tmp_path, monkeypatch):
    """The blocks about memory, the first in two parts, and the names that they know from the quick start."""
    monkeypatch.chdir(tmp_path)  # the first one saves a model
    section = README[README.index("## Memory and devices") : README.index("## Fine-tuning with TRL")]
    quantized, offloaded, spread = blocks("py", section)
    nf4, torchao, int8 = quantized.partition("from torchao")
    names = {"torch": torch, "path": str(saved_folder), "AutoModelForImageTextToText": AutoModelForImageTextToText}
    return (nf4, torchao + int8, offloaded, spread), names


def test_nf4_block(memory_blocks):
    pytest.importorskip("bitsandbytes")
    (nf4, *_), names = memory_blocks
    run(nf4, names)
    again = AutoModelForImageTextToText.from_pretrained("InternVL-Chat-V1-5-nf4", trust_remote_code=True)
    assert again.is_loaded_in_4bit


def test_torchao_block(memory_blocks):
    pytest.importorskip("torchao")
    (nf4, int8, *_), names = memory_blocks
    run(nf4.split("nf4 =")[0] + int8, names)
    assert names["model"].is_quantized


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="the blocks name GPUs")
def test_blocks_for_gpus(memory_blocks):
    pytest.importorskip("bitsandbytes")
    (nf4, _, offloaded, spread), names = memory_blocks
    run(nf4 + offloaded, names)
    assert names["model"].vision_model.embeddings.patch_embedding.weight.device.type in ("cpu", "meta")
    run(spread, names)
    assert names["model"].device.type == "cuda"


def test_folder_of_the_embedded_checkpoint(tmp_path):
    (command,) = re.findall(r"in a clone: `(.*)`", README)
    command = command.replace("InternVL-Chat-V1-5", str(tmp_path / "made"))
    subprocess.run(command, shell=True, cwd=ROOT, check=True)
    assert AutoModelForImageTextToText.from_pretrained(tmp_path / "made", trust_remote_code=True).num_image_token == 64


def test_quick_start_is_short():
    block = re.search(r"## Quick start\n\n```python\n(.*?)```", README, flags=re.DOTALL)[1]
    assert len([line for line in block.splitlines() if line.strip()]) <= 15


def test_make_commands_exist():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    commands = set(re.findall(r"make ([a-z-]+)", README))
    assert {"chat", "test", "window", "lint"} <= commands
    for command in commands:
        assert re.search(rf"^{command}:", makefile, flags=re.MULTILINE), command


def test_every_file_has_a_row():
    table = README[README.index("## Files") : README.index("## Licence")]
    for file in [*ROOT.glob("*.py"), ROOT / "chat_template.jinja"]:
        assert f"`{file.name}`" in table, file.name
