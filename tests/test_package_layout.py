"""The flat package keeps the rules that Transformers' loader of remote code sets, and its own layers.

The loader finds imports by reading text, copies files one by one and knows no folders; a mistake here shows only on a
user's machine, so the files are read here as the loader reads them.
"""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parent.parent
DATA_FILES = ("config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json")

# A file imports only from lower layers.
LAYERS = {
    "configuration_intern_vit": 0,
    "configuration_internlm2": 0,
    "llm_config_internvl": 0,
    "loading_internvl": 0,
    "rope_internvl": 0,
    "tiling_internvl": 0,
    "tokenization_internlm2": 0,
    "tokenization_internlm2_fast": 1,
    "prompt_format_internvl": 0,
    "media_internvl": 0,
    "image_loading_internvl": 1,
    "inputs_internvl": 0,
    "image_features_internvl": 1,
    "loss_internvl": 1,
    "compat_internvl": 0,
    "quantization_internvl": 0,
    "cache_internvl": 1,
    "configuration_internvl_chat": 1,
    "modeling_intern_vit": 1,
    "modeling_internlm2": 2,
    "tile_pixels_internvl": 1,
    "image_processing_internvl": 2,
    "conversation_internvl": 1,
    "video_internvl": 1,
    "answer_internvl": 3,
    "streaming_internvl": 4,
    "generation_internvl": 2,
    "chat_internvl": 6,
    "token_map_internvl": 1,
    "grounding_internvl": 2,
    "session_internvl": 5,
    "reward_internvl": 6,
    "collator_internvl": 2,
    "processing_internvl": 3,
    "modeling_internvl_chat": 7,
}
# What the loader is asked for by name; a configuration is always loaded before the rest.
CONFIGURATION = "configuration_internvl_chat"
ENTRIES = ("modeling_internvl_chat", "processing_internvl", "image_processing_internvl", "tokenization_internlm2_fast")

LIBRARIES = ("torch", "transformers", "PIL", "numpy", "safetensors", "sentencepiece", "tokenizers")
ALLOWED = {*LIBRARIES, *sys.stdlib_module_names}
OPTIONAL = ("flash_attn", "timm", "einops", "peft", "torchvision", "av")

# How Transformers looks for imports: in the text, docstrings and comments included.
LOADER_PATTERN = re.compile(r"^\s*(?:import\s+\.(\S+)\s*|from\s+\.(\S+)\s+import)", re.MULTILINE)


def source(name):
    return (ROOT / f"{name}.py").read_text("utf-8")


def imports(code):
    """Return what a file imports anywhere in it: names of siblings, names of packages, and what is not allowed."""
    siblings, packages, wrong = [], [], []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            packages += [alias.name.split(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            packages.append(node.module.split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            if node.level > 1 or node.module is None or "." in node.module or node.names[0].name == "*":
                wrong.append(ast.unparse(node))
            else:
                siblings.append(node.module)
    return siblings, packages, wrong


def problems(sources, layers=LAYERS):
    """Return what is wrong with the imports of a package, a line for each."""
    found = []
    for name, code in sources.items():
        siblings, packages, wrong = imports(code)
        found += [f"{name}: {line}" for line in wrong]
        found += [f"{name}: {package} is not allowed" for package in packages if package not in ALLOWED]
        for sibling in siblings:
            if sibling not in sources:
                found.append(f"{name}: {sibling}.py does not exist")
            elif layers[sibling] >= layers[name]:
                found.append(f"{name} (layer {layers[name]}) imports {sibling} (layer {layers[sibling]})")
        read = [one or other for one, other in LOADER_PATTERN.findall(code)]
        found += [f"{name}: the loader reads an import of {extra}" for extra in sorted(set(read) - set(siblings))]
        found += [f"{name}: the loader does not see {missing}" for missing in sorted(set(siblings) - set(read))]
    return found


def closure(name):
    """Return every file that a file needs, itself included."""
    needed, waiting = set(), [name]
    while waiting:
        needed.add(current := waiting.pop())
        waiting += set(imports(source(current))[0]) - needed
    return needed


def test_every_file_has_a_layer():
    assert {path.stem for path in ROOT.glob("*.py")} == set(LAYERS)
    # One package, no folders beside: the root holds no __init__.py either.
    assert not (ROOT / "__init__.py").exists()


def test_imports_of_the_package():
    assert problems({name: source(name) for name in LAYERS}) == []


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("from .pkg.low import x", "high: from .pkg.low import x"),
        ("from ..low import x", "high: from ..low import x"),
        ("from . import low", "high: from . import low"),
        ("from .low import *", "high: from .low import *"),
        ("from .missing import x", "high: missing.py does not exist"),
        ("def f():\n    import timm", "high: timm is not allowed"),
        ("import low", "high: low is not allowed"),
        ('"""Use it like this.\n\n    from .example import x\n"""', "high: the loader reads an import of example"),
        ("from .high import x", "high (layer 1) imports high (layer 1)"),
    ],
)
def test_broken_packages_are_noticed(code, problem):
    layers = {"low": 0, "high": 1}
    good = {"low": "x = 1", "high": "import torch\nfrom .low import (\n    x,\n)"}
    assert problems(good, layers) == []
    assert problem in problems({"low": "x = 1", "high": code}, layers)


def test_circles_are_noticed():
    circle = {"low": "from .high import y", "high": "from .low import x"}
    assert problems(circle, {"low": 0, "high": 1}) == ["low (layer 0) imports high (layer 1)"]


@pytest.mark.parametrize("entry", ENTRIES)
def test_entries_name_all_they_need(entry):
    """Transformers before 5.9 copies from a local folder only what the entry file itself imports."""
    direct = set(imports(source(entry))[0])
    assert closure(entry) - {entry} - direct - closure(CONFIGURATION) == set()


def test_the_configuration_names_all_it_needs():
    assert closure(CONFIGURATION) - {CONFIGURATION} == set(imports(source(CONFIGURATION))[0])


@pytest.mark.parametrize("folder", [".", "tiny"])
def test_targets_of_auto_map_exist(folder):
    count = 0
    for file in DATA_FILES:
        path = ROOT / folder / file
        auto_map = json.loads(path.read_text("utf-8")).get("auto_map", {}) if path.exists() else {}
        for targets in auto_map.values():
            for target in targets if isinstance(targets, list) else [targets]:
                if target is not None:
                    module, name = target.split(".")
                    classes = [node.name for node in ast.parse(source(module)).body if isinstance(node, ast.ClassDef)]
                    assert name in classes, f"{file}: {target}"
                    count += 1
    assert count >= 4


def test_auto_map_of_the_root():
    auto_map = json.loads((ROOT / "config.json").read_text("utf-8"))["auto_map"]
    assert auto_map == {
        "AutoConfig": "configuration_internvl_chat.InternVLChatConfig",
        "AutoModel": "modeling_internvl_chat.InternVLChatModel",
        "AutoModelForCausalLM": "modeling_internvl_chat.InternVLChatModel",
        "AutoModelForImageTextToText": "modeling_internvl_chat.InternVLChatModel",
        "AutoModelForMultimodalLM": "modeling_internvl_chat.InternVLChatModel",
        "AutoTokenizer": [
            "tokenization_internlm2.InternLM2Tokenizer",
            "tokenization_internlm2_fast.InternLM2TokenizerFast",
        ],
        "AutoImageProcessor": "image_processing_internvl.InternVLImageProcessor",
        "AutoProcessor": "processing_internvl.InternVLProcessor",
    }


@pytest.mark.parametrize("name", LAYERS)
def test_nothing_is_printed(name):
    calls = [node.func for node in ast.walk(ast.parse(source(name))) if isinstance(node, ast.Call)]
    assert not [call for call in calls if isinstance(call, ast.Name) and call.id == "print"]


IMPORT_ALL = """
import importlib, sys, types

package = types.ModuleType("internvl_chat")
package.__path__ = [sys.argv[1]]
sys.modules["internvl_chat"] = package
for name in sys.argv[2:]:
    importlib.import_module(f"internvl_chat.{name}")
sys.stderr.write("\\n".join(sys.modules))
"""


def test_importing_is_silent_and_needs_nothing_optional():
    result = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, ROOT, *LAYERS],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert result.stdout == ""
    loaded = set(result.stderr.split())
    assert {f"internvl_chat.{name}" for name in LAYERS} <= loaded
    assert [name for name in OPTIONAL if name in loaded] == []
