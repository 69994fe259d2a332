"""The optimizer: bf16 weights with fp32 masters, Muon for matrices, AdamW for the rest, cosine decay to zero."""

import math
from typing import Any

import torch
from torch import nn


# Tables and readers are looked up or compared row by row; orthogonal updates suit matrices that transform a state.
ADAM_NAMES = ("tok_embeddings", "output", "reader", "embeddings.position", "embeddings.class")


def rate_at(step: int, steps: int, warmup: int) -> float:
    """Give the share of the peak learning rate: linear warm-up, then a cosine to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))


class MasterOptimizer(torch.optim.Optimizer):
    """Steps fp32 copies of the parameters, the masters, and writes them back.

    Its parameter groups hold the parameters, so that a learning rate scheduler sets their `lr`. Make it before the
    parameters become bf16: the masters are taken from what they are then.

    Args:
        parameters: Trained parameters by name.
        settings: The "optimizer" part of the configuration.
        scale: Multiplies every learning rate, for a stage that starts from trained weights.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], settings: dict[str, Any], scale: float) -> None:
        self.parameters, self.clip = parameters, settings["clip"]
        self.masters = {name: value.detach().float().clone() for name, value in parameters.items()}
        names = {kind: [] for kind in ("muon", "adam", "patch")}
        for name, master in self.masters.items():
            names[_group_of(name, master)].append(name)
        names = {kind: members for kind, members in names.items() if members}
        # Pages are mostly one flat colour: a large constant input that a high rate would blow up.
        peaks = {"muon": "muon_lr", "adam": "adam_lr", "patch": "patch_embedding_lr"}
        groups = [
            {"params": [parameters[name] for name in members], "lr": scale * settings[peaks[kind]]}
            for kind, members in names.items()
        ]
        super().__init__(groups, {})
        self.workers = [
            _worker(kind, [self.masters[name] for name in members], settings["weight_decay"])
            for kind, members in names.items()
        ]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Clip the gradients of all parameters together and apply them; a missing gradient counts as zeros.

        Args:
            closure: Part of PyTorch's interface; the gradients must be there already.
        """
        for name, master in self.masters.items():
            grad = self.parameters[name].grad
            master.grad = torch.zeros_like(master) if grad is None else grad.float()
        nn.utils.clip_grad_norm_(self.masters.values(), self.clip)
        for worker, group in zip(self.workers, self.param_groups, strict=True):
            worker.param_groups[0]["lr"] = group["lr"]
            worker.step()
        self._write_back()

    def state_dict(self) -> dict[str, Any]:
        """Give learning rates, masters and moments."""
        workers = [worker.state_dict() for worker in self.workers]
        return super().state_dict() | {"masters": self.masters, "workers": workers}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        super().load_state_dict(state_dict)
        for name, master in self.masters.items():
            master.copy_(state_dict["masters"][name])
        for worker, saved in zip(self.workers, state_dict["workers"], strict=True):
            worker.load_state_dict(saved)
        self._write_back()

    def _write_back(self) -> None:
        for name, master in self.masters.items():
            self.parameters[name].copy_(master)


def _group_of(name: str, value: torch.Tensor) -> str:
    if "patch_embedding" in name:
        return "patch"
    return "muon" if value.ndim == 2 and not any(part in name for part in ADAM_NAMES) else "adam"


def _worker(kind: str, masters: list[torch.Tensor], weight_decay: float) -> torch.optim.Optimizer:
    """Make the optimizer of one group's masters; its learning rate is set at every step."""
    if kind == "muon":
        return torch.optim.Muon(masters, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
    return torch.optim.AdamW(masters, betas=(0.9, 0.98), weight_decay=weight_decay)
