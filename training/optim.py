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


class MasterOptimizer:
    """Steps fp32 copies of the parameters and writes them back.

    Args:
        parameters: Trained parameters by name.
        settings: The "optimizer" part of the configuration.
        scale: Multiplies every learning rate, for a stage that starts from trained weights.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], settings: dict[str, Any], scale: float) -> None:
        self.parameters, self.clip = parameters, settings["clip"]
        self.masters = {name: value.detach().float().clone() for name, value in parameters.items()}
        groups = {"muon": [], "adam": [], "patch": []}
        for name, master in self.masters.items():
            groups[_group_of(name, master)].append(master)
        decay = settings["weight_decay"]
        adam = [
            {"params": groups["adam"], "lr": scale * settings["adam_lr"]},
            # Pages are mostly one flat colour: a large constant input that a high rate would blow up.
            {"params": groups["patch"], "lr": scale * settings["patch_embedding_lr"]},
        ]
        self.optimizers = [torch.optim.AdamW([g for g in adam if g["params"]], betas=(0.9, 0.98), weight_decay=decay)]
        if groups["muon"]:
            rate = scale * settings["muon_lr"]
            self.optimizers.append(
                torch.optim.Muon(groups["muon"], lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
            )
        self.peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]

    def step(self, rate: float) -> None:
        """Apply the gradients of the parameters at `rate` of the peak learning rates, and clear them."""
        for name, master in self.masters.items():
            grad = self.parameters[name].grad
            master.grad = torch.zeros_like(master) if grad is None else grad.float()
            self.parameters[name].grad = None
        torch.nn.utils.clip_grad_norm_(self.masters.values(), self.clip)
        for optimizer, peaks in zip(self.optimizers, self.peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = rate * peak
            optimizer.step()
        with torch.no_grad():
            for name, master in self.masters.items():
                self.parameters[name].copy_(master)

    def state_dict(self) -> dict[str, Any]:
        """Give masters and moments."""
        return {"masters": self.masters, "optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        with torch.no_grad():
            for name, master in self.masters.items():
                master.copy_(state["masters"][name])
                self.parameters[name].copy_(master)
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)


def _group_of(name: str, value: torch.Tensor) -> str:
    if "patch_embedding" in name:
        return "patch"
    return "muon" if value.ndim == 2 and not any(part in name for part in ADAM_NAMES) else "adam"
