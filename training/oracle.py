"""Oracle image tokens: what a perfect vision encoder would say, made from the labels alone.

A small language model does not discover reading through the tokens of an untrained vision encoder. Given tokens that
spell out what each cell shows it learns in minutes; the vision encoder is then pulled towards those tokens. The codes
are fixed random vectors, drawn once from a seed and never trained, so that both sides can start at the same time; they
are thrown away with the training heads. Whatever a question asks about must be in the code, or the pull would erase
it.
"""

import torch
from torch import nn

from training.tiles import CHARACTERS, COLOUR_IDS, KIND_IDS, SLOTS, TileLabels


class OracleCodes(nn.Module):
    """Turns cell labels into tokens: `rmsnorm(sum of the codes of everything in the cell)`.

    A character's code is its own vector turned by the orthogonal matrix of its slot, so that "3 first" and "3 second"
    are related but distinct, however many characters there are.

    Args:
        hidden_size: Width of the language model.
        seed: Seed of the codes.
    """

    def __init__(self, hidden_size: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def codes(count: int) -> torch.Tensor:
            return nn.functional.normalize(torch.randn(count, hidden_size, generator=generator), dim=-1)

        characters = codes(len(CHARACTERS))
        turns = torch.stack(
            [torch.linalg.qr(torch.randn(hidden_size, hidden_size, generator=generator))[0] for _ in range(SLOTS)]
        )
        nothing = torch.zeros(1, hidden_size)
        slots = torch.stack([torch.cat([nothing, characters @ turn]) for turn in turns])
        self.register_buffer("characters", slots)  # (slots, 1 + characters, hidden)
        self.register_buffer("kinds", torch.cat([nothing, codes(len(KIND_IDS))]))
        self.register_buffer("colours", torch.cat([nothing, codes(len(COLOUR_IDS))]))
        self.register_buffer("centres", torch.cat([nothing, codes(1)]))
        self.register_buffer("empty", codes(1)[0])

    def forward(self, labels: dict[str, torch.Tensor]) -> torch.Tensor:
        """Make the tokens.

        Args:
            labels: `chars` (tiles, cells, slots), `kinds`, `colours` and `centres` (tiles, cells).

        Returns:
            Tokens of unit mean square (tiles, cells, hidden).
        """
        chars = labels["chars"]
        token = self.kinds[labels["kinds"]] + self.colours[labels["colours"]] + self.centres[labels["centres"]]
        for slot in range(SLOTS):
            token = token + self.characters[slot][chars[..., slot]]
        bare = (labels["kinds"] == 0) & (chars[..., 0] == 0)
        token = torch.where(bare[..., None], self.empty + token, token)
        return nn.functional.rms_norm(token, token.shape[-1:])


def as_tensors(labels: TileLabels) -> dict[str, torch.Tensor]:
    """Turn label arrays into tensors by name."""
    return {name: torch.from_numpy(array) for name, array in vars(labels).items()}
