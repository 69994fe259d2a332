"""Shared by the tests of clients: the client or a skip that says why, and a CPU where clients assume a GPU."""

import importlib
import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image


ROOT = Path(__file__).resolve().parents[2]
# A library's operators live as long as it does.
LIBRARIES: list[torch.library.Library] = []


def register_torchvision_operators() -> None:
    """Let torchvision's transforms be imported where its compiled operators do not fit this build of torch.

    A torchvision built for CUDA cannot load its library beside a torch built for the CPU, and then stops on import
    because two operators are unknown. The clients' transforms use neither.
    """
    try:
        importlib.import_module("torchvision")
    except ImportError:
        return
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        LIBRARIES.append(library)
        importlib.import_module("torchvision")


# Before Transformers, which imports torchvision where it is installed.
register_torchvision_operators()


@pytest.fixture(scope="session")
def shapes_path() -> str:
    return str(ROOT / "examples" / "shapes.png")


@pytest.fixture
def shapes(shapes_path: str) -> Image.Image:
    return Image.open(shapes_path).convert("RGB")


@pytest.fixture(scope="session")
def client() -> Callable[[str, str], ModuleType]:
    """Import a client's module, or skip: these packages are not installed with this one."""

    def load(distribution: str, module: str) -> ModuleType:
        try:
            version = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"{distribution} is not installed")
        try:
            return importlib.import_module(module)
        except ImportError as error:
            pytest.skip(f"{distribution} {version}: {module} cannot be imported here: {error}")

    return load


@pytest.fixture
def cuda_is_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no GPU, send what a client sends to CUDA to the CPU. The client itself is not changed."""
    if torch.cuda.is_available():
        return

    def redirected(original: Callable) -> Callable:
        def to(self: Any, *args: Any, **kwargs: Any) -> Any:
            if "device" in kwargs:
                kwargs["device"] = _on_cpu(kwargs["device"])
            return original(self, *map(_on_cpu, args), **kwargs)

        return to

    for kind in (torch.Tensor, torch.nn.Module):
        monkeypatch.setattr(kind, "to", redirected(kind.to))
        monkeypatch.setattr(kind, "cuda", lambda self, *_, **__: self)
    from transformers import AutoModel  # noqa: PLC0415

    load = AutoModel.from_pretrained

    def from_pretrained(*args: Any, device_map: Any = None, **kwargs: Any) -> Any:
        return load(*args, device_map=_on_cpu(device_map), **kwargs)

    monkeypatch.setattr(AutoModel, "from_pretrained", from_pretrained)


def _on_cpu(device: Any) -> Any:
    names_cuda = isinstance(device, (str, torch.device)) and str(device).startswith("cuda")
    return "cpu" if names_cuda else device
