"""Shared fixtures: the package under an importable name, folders as users have them, the official code's answers."""

import json
import os
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).resolve().parent.parent
GOLDENS = ROOT.parent / "shared" / "goldens"
CODE_FILES = sorted(ROOT.glob("*.py"))
# Golden cases that are a checkpoint with recorded answers.
MODEL_CASES = (
    "c01_v15_26b",
    "c02_mini_2b",
    "c03_ps_v1",
    "c05_v12_llama",
    "c06_qwen2",
    "c08_dynamic_ntk",
    "c13_dims64_internlm2",
    "c13_dims64_llama",
)

# The Hub loader gives the flat files a package at run time; tests give them one under a name of their own.
package = types.ModuleType("internvl_chat")
package.__path__ = [str(ROOT)]
sys.modules["internvl_chat"] = package


@pytest.fixture(scope="session")
def goldens() -> Path:
    if not GOLDENS.is_dir():
        pytest.skip("the recorded answers of the official code (shared/goldens beside the repository) are not here")
    return GOLDENS


@pytest.fixture(scope="session", autouse=True)
def modules_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keep the code that Transformers copies away from the user's own cache."""
    from transformers import dynamic_module_utils  # noqa: PLC0415 (after the environment is set)
    from transformers.utils import hub  # noqa: PLC0415

    folder = tmp_path_factory.mktemp("hf_modules")
    for module in (dynamic_module_utils, hub):
        if hasattr(module, "HF_MODULES_CACHE"):
            module.HF_MODULES_CACHE = str(folder)
    return folder


@pytest.fixture(scope="session")
def golden_case(goldens: Path) -> Callable[[str], tuple[dict[str, Any], dict[str, Any]]]:
    """Return the recorded tensors and the JSON of a case."""
    from safetensors.torch import load_file  # noqa: PLC0415

    def read(case: str) -> tuple[dict[str, Any], dict[str, Any]]:
        folder = goldens / case
        return load_file(folder / "golden.safetensors"), json.loads((folder / "golden.json").read_text("utf-8"))

    return read


@pytest.fixture(scope="session")
def golden_model(goldens: Path) -> Callable[..., Any]:
    """Load a case's checkpoint in float32, ready to answer, as its own copy or shared (default) between tests."""
    import torch  # noqa: PLC0415
    from internvl_chat.modeling_internvl_chat import InternVLChatModel  # noqa: PLC0415

    shared: dict[tuple, Any] = {}

    def load(case: str, fresh: bool = False, **kwargs: Any) -> Any:
        record = json.loads((goldens / case / "golden.json").read_text("utf-8"))
        kwargs = {"dtype": torch.float32, **kwargs}
        key = (case, *sorted((name, str(value)) for name, value in kwargs.items()))
        if fresh or key not in shared:
            folder = goldens / record.get("checkpoint", f"{case}/checkpoint")
            model = InternVLChatModel.from_pretrained(folder, **kwargs)
            if "img_context_token_id" in record:
                model.img_context_token_id = record["img_context_token_id"]
            if fresh:
                return model
            shared[key] = model
        return shared[key]

    return load


@pytest.fixture(params=MODEL_CASES)
def case(request: pytest.FixtureRequest, golden_case: Callable, golden_model: Callable) -> tuple:
    """Return each case's model with the backend of the records, its recorded tensors and its JSON."""
    tensors, record = golden_case(request.param)
    return golden_model(request.param, attn_implementation="eager"), tensors, record


@pytest.fixture(scope="session")
def tokenizer(goldens: Path) -> Any:
    """The published tokenizer, in the form that AutoTokenizer loads; converted, since there is no tokenizer.json."""
    from internvl_chat.tokenization_internlm2_fast import InternLM2TokenizerFast  # noqa: PLC0415

    return InternLM2TokenizerFast.from_pretrained(goldens / "tokenizer")


@pytest.fixture(scope="session")
def hub_folder(goldens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as it is on the Hub: this package's code and data, with the weights of a small golden checkpoint.

    The model is c01, a V1.5 in small: tiles of 112 pixels, 16 image tokens each.
    """
    folder = tmp_path_factory.mktemp("hub") / "InternVL-Chat-V1-5"
    folder.mkdir()
    for file in [*CODE_FILES, *ROOT.glob("*.json"), ROOT / "chat_template.jinja"]:
        shutil.copy(file, folder)
    checkpoint = goldens / "c01_v15_26b" / "checkpoint"
    for file in [goldens / "tokenizer" / "tokenizer.model", checkpoint / "config.json", *checkpoint.glob("model*")]:
        shutil.copyfile(file, folder / file.name)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["auto_map"] = json.loads((ROOT / "config.json").read_text("utf-8"))["auto_map"]
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    preprocessor = json.loads((folder / "preprocessor_config.json").read_text("utf-8"))
    preprocessor |= {"tile_size": 112, "size": 112, "crop_size": 112}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor), "utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded checkpoint as a folder of its own, code beside the weights, as a user would have it."""
    folder = tmp_path_factory.mktemp("hub") / "InternVL-tiny"
    shutil.copytree(ROOT / "tiny", folder)
    for file in [*CODE_FILES, ROOT / "chat_template.jinja"]:
        shutil.copy(file, folder)
    return folder
