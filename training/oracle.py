"""Oracle image tokens: what a perfect vision encoder would say, made from the labels alone.

A small language model does not discover reading through the tokens of an untrained vision encoder. Given tokens that
spell out what each cell shows it learns in minutes; the vision encoder is then pulled towards those tokens. The codes
are fixed random vectors, drawn once from a seed and never trained, so that both sides can start at the same time; they
are thrown away with the training heads. Whatever a question asks about must be in the code, or the pull would erase
it.
"""

import torch
from torch import nn

from training.tiles import BOX_STEPS, CHARACTERS, COLOUR_IDS, DIGITS, KIND_IDS, PLACES, SLOTS, TileLabels


# Kinds that the codes began with; what came later is drawn later, so that weights trained before stay valid.
FIRST_KINDS = 7
SIDES = 4
# Waves per tile side that tell places apart, from coarse (which is further left?) to fine (which step exactly?).
WAVES = (0.5, 1.0, 2.0, 4.0, 8.0)
# Characters are many and share a cell: beside them all else is said in a lower voice, or they would not be told apart.
# Only where the cell stands in its text is said as loudly: without it characters come in the wrong order.
LOW_VOICE = 0.4
# Where a cell lies matters less than what it shows.
CELL_PLACE_WEIGHT = 0.5


class OracleCodes(nn.Module):
    """Turns cell labels into tokens: `rmsnorm(sum of the codes of everything in the cell)`.

    A character's code is its own vector turned by the orthogonal matrix of its slot, so that "3 first" and "3 second"
    are related but distinct, however many characters there are. Edges and places of cells are codes of waves, so that
    near ones have similar codes.

    Args:
        hidden_size: Width of the language model.
        seed: Seed of the codes.
        cells: Image tokens per side of a tile.
    """

    def __init__(self, hidden_size: int, seed: int, cells: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def codes(count: int) -> torch.Tensor:
            return nn.functional.normalize(torch.randn(count, hidden_size, generator=generator), dim=-1)

        digits = codes(len(DIGITS))
        turns = torch.stack(
            [torch.linalg.qr(torch.randn(hidden_size, hidden_size, generator=generator))[0] for _ in range(SLOTS)]
        )
        kinds, colours, centres, empty = codes(FIRST_KINDS), codes(len(COLOUR_IDS)), codes(1), codes(1)
        characters = torch.cat([digits, codes(len(CHARACTERS) - len(DIGITS))])
        self.spelling = characters  # (characters, hidden), without a slot
        kinds = torch.cat([kinds, codes(len(KIND_IDS) - FIRST_KINDS)])
        edges = torch.stack([_waves(BOX_STEPS + 1) @ codes(2 * len(WAVES)) for _ in range(SIDES)])
        rows, columns = (_waves(cells) @ codes(2 * len(WAVES)) for _ in range(2))
        firsts = codes(PLACES + 1)
        nothing = torch.zeros(1, hidden_size)
        slots = torch.stack([torch.cat([nothing, characters @ turn]) for turn in turns])
        places = CELL_PLACE_WEIGHT * (rows[:, None] + columns[None]).flatten(0, 1)
        self.register_buffer("characters", slots)  # (slots, 1 + characters, hidden)
        self.register_buffer("kinds", torch.cat([nothing, kinds]))
        self.register_buffer("colours", torch.cat([nothing, colours]))
        self.register_buffer("centres", torch.cat([nothing, centres]))
        edges = torch.cat([nothing.expand(SIDES, 1, -1), edges], dim=1)
        self.register_buffer("edges", edges)  # (sides, 2 + steps, hidden)
        self.register_buffer("firsts", torch.cat([nothing, firsts]))
        self.register_buffer("places", places)  # (cells * cells, hidden)
        self.register_buffer("empty", empty[0])

    def forward(self, labels: dict[str, torch.Tensor]) -> torch.Tensor:
        """Make the tokens.

        Args:
            labels: `chars` (tiles, cells, slots), `firsts`, `kinds`, `colours` and `centres` (tiles, cells), `edges`
                (tiles, cells, 4).

        Returns:
            Tokens of unit mean square (tiles, cells, hidden).
        """
        chars = labels["chars"]
        said = self.kinds[labels["kinds"]] + self.colours[labels["colours"]] + self.centres[labels["centres"]]
        for side in range(SIDES):
            said = said + self.edges[side][labels["edges"][..., side]]
        has_text = chars[..., 0] > 0
        bare = (labels["kinds"] == 0) & ~has_text
        said = said + torch.where(bare[..., None], self.empty, self.places)
        token = torch.where(has_text[..., None], LOW_VOICE, 1.0).to(said.dtype) * said + self.firsts[labels["firsts"]]
        for slot in range(SLOTS):
            token = token + self.characters[slot][chars[..., slot]]
        return nn.functional.rms_norm(token, token.shape[-1:])


def _waves(count: int) -> torch.Tensor:
    """Describe `count` evenly spaced places by waves, each of unit length: (count, 2 * waves)."""
    phase = torch.linspace(0, 1, count)[:, None] * torch.tensor(WAVES) * torch.pi
    return torch.cat([phase.cos(), phase.sin()], dim=-1) / len(WAVES) ** 0.5


def as_tensors(labels: TileLabels) -> dict[str, torch.Tensor]:
    """Turn label arrays into tensors by name."""
    return {name: torch.from_numpy(array) for name, array in vars(labels).items()}
