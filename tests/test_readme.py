"""The README's code runs, block after block as a reader would paste it, on the embedded checkpoint."""

import re
from pathlib import Path

import pytest


pytestmark = pytest.mark.newest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")
PLACEHOLDER = 'path = "InternVL-Chat-V1-5"'


def test_python_blocks(tiny_folder, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)  # the examples name pictures of the repository
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 6
    assert blocks[0].count(PLACEHOLDER) == 1
    namespace = {}
    for number, block in enumerate(blocks):
        code = block.replace(PLACEHOLDER, f"path = {str(tiny_folder)!r}")
        exec(compile(code, f"README.md, block {number}", "exec"), namespace)
    assert "red" in capsys.readouterr().out.splitlines()[0]


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
