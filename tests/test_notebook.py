"""The notebook runs from top to bottom, cell after cell, wherever it is opened."""

import json
import sys
from pathlib import Path

import pytest
from PIL import Image


pytestmark = pytest.mark.newest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"


def cells(kind):
    content = json.loads(NOTEBOOK.read_text("utf-8"))
    return ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == kind]


def test_it_is_saved_without_outputs():
    content = json.loads(NOTEBOOK.read_text("utf-8"))
    assert [cell for cell in content["cells"] if cell.get("outputs") or cell.get("execution_count")] == []


def shown(code, namespace):
    """Run a cell and return what Jupyter would show below it: the value of its last line."""
    *_, last = code.splitlines()
    body, expression = code, None
    try:
        expression = compile(last, "last line", "eval")
        body = code[: -len(last)]
    except SyntaxError:
        pass
    exec(compile(body, "cell", "exec"), namespace)
    return eval(expression, namespace) if expression else None


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(monkeypatch, capsys):
    monkeypatch.chdir(NOTEBOOK.parent)
    monkeypatch.setattr(sys, "path", [*sys.path])  # the notebook adds to it
    namespace = {}
    values = [shown(code, namespace) for code in cells("code")]
    pictures = [value for value in values if isinstance(value, Image.Image)]
    assert [picture.size for picture in pictures][:3] == [(600, 300), (640, 320), (696, 224)]
    assert len(pictures) == 5
    printed = capsys.readouterr().out
    for line in (
        "2 × 1 tiles",
        "red\n橙色",
        "192 image tokens",
        "> What colour is the circle?\nred\n> 图中的数字是多少？\n4072",
        "40 tiles at most: 7 × 4, 1856 tokens\n1 tiles: 4072\n3 tiles: 4072",
    ):
        assert line in printed, line
    assert "<ref>orange star</ref><box>[[" in printed
