"""Training aids that are thrown away: heads that read what patches, image tokens and names show, and their losses."""

import torch
from torch import nn

from training.tiles import BOX_STEPS, CHARACTERS, COLOUR_IDS, KIND_IDS, PLACES, SLOTS


# Most patches and cells show nothing; they count this much against those that show something.
NOTHING_WEIGHT = 0.2
NOT_SPELLED_WEIGHT = 0.2
# The language model has done its sorting after this many of its layers.
SPELLING_LAYER = 2
# And has found there what a question names, at the end of the name.
FINDING_LAYER = 2
CHAR_CLASSES, KIND_CLASSES, COLOUR_CLASSES = len(CHARACTERS) + 1, len(KIND_IDS) + 1, len(COLOUR_IDS) + 1
PATCH_CLASSES = (CHAR_CLASSES, CHAR_CLASSES, KIND_CLASSES, COLOUR_CLASSES)
SPELLING_CLASSES = (CHAR_CLASSES,) * PLACES
EDGE_CLASSES = (BOX_STEPS + 2,) * 4
FINDING_CLASSES = (BOX_STEPS + 1,) * 4
CELL_CLASSES = (CHAR_CLASSES,) * SLOTS + (KIND_CLASSES, COLOUR_CLASSES, 2) + EDGE_CLASSES + (PLACES + 2,)


class TrainingHeads(nn.Module):
    """Linear readers of patches (before the projector) and of image tokens (after it).

    Args:
        vision_width: Channels of a patch.
        hidden_size: Width of an image token.
        per_cell: Patches on the side of the square behind one image token.
    """

    def __init__(self, vision_width: int, hidden_size: int, per_cell: int) -> None:
        super().__init__()
        self.per_cell = per_cell
        self.patch_norm = nn.LayerNorm(vision_width)
        self.patch_reader = nn.Linear(vision_width, sum(PATCH_CLASSES))
        self.cell_reader = nn.Linear(hidden_size, sum(CELL_CLASSES))
        self.spelling_norm = nn.LayerNorm(hidden_size)
        self.spelling_reader = nn.Linear(hidden_size, sum(SPELLING_CLASSES))
        self.finding_norm = nn.LayerNorm(hidden_size)
        self.finding_reader = nn.Linear(hidden_size, sum(FINDING_CLASSES))

    def dense_loss(self, shuffled: torch.Tensor, labels: dict[str, torch.Tensor]) -> torch.Tensor:
        """Ask every patch for its two half characters, the kind of thing and its colour.

        Args:
            shuffled: Input of the projector (tiles, cells, per_cell² * vision_width).
            labels: See `TileLabels`.

        Returns:
            The mean cross-entropy of the four.
        """
        patches = shuffled.unflatten(-1, (self.per_cell**2, -1))  # (tiles, cells, per_cell², vision_width)
        halves = self._by_cell(labels["half_chars"].unflatten(-1, (-1, 2)))  # (tiles, cells, per_cell², 2)
        kinds, colours = (self._by_cell(labels[name][..., None]) for name in ("patch_kinds", "patch_colours"))
        targets = torch.cat([halves, kinds, colours], dim=-1)
        return _losses(self.patch_reader(self.patch_norm(patches)), PATCH_CLASSES, targets)

    def code_loss(self, tokens: torch.Tensor, labels: dict[str, torch.Tensor]) -> torch.Tensor:
        """Ask every image token for its characters in order, kind of thing, colour, centre, edges and first place.

        Args:
            tokens: Projected image tokens (tiles, cells, hidden).
            labels: See `TileLabels`.

        Returns:
            The mean cross-entropy of these.
        """
        rest = torch.stack([labels["kinds"], labels["colours"], labels["centres"]], dim=-1)
        targets = torch.cat([labels["chars"], rest, labels["edges"], labels["firsts"][..., None]], dim=-1)
        return _losses(self.cell_reader(tokens), CELL_CLASSES, targets)

    def spelling_loss(self, states: torch.Tensor, labels: dict[str, torch.Tensor]) -> torch.Tensor:
        """Ask the language model, at every image token, for each character's place in its text.

        Without this it reads by looking for what follows the digit just said, and stumbles over repeated digits.

        Args:
            states: States of the language model at the image tokens (tiles * cells, hidden).
            labels: See `TileLabels`.

        Returns:
            The mean cross-entropy over the places.
        """
        logits = self.spelling_reader(self.spelling_norm(states))
        return _losses(logits, SPELLING_CLASSES, labels["spelled"].flatten(0, 1), NOT_SPELLED_WEIGHT)

    def finding_loss(self, states: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        """Ask the language model, at the end of each name in a question, for the edges of what it names.

        Asked only through answers, it hardly learns where things are.

        Args:
            states: States of the language model at the names (things, hidden).
            edges: Steps of the left, top, right and bottom edge (things, 4).

        Returns:
            The mean cross-entropy over the edges.
        """
        return _losses(self.finding_reader(self.finding_norm(states)), FINDING_CLASSES, edges, nothing_weight=1)

    def _by_cell(self, labels: torch.Tensor) -> torch.Tensor:
        """Order patch labels (tiles, rows, columns, n) as pixel shuffle does: (tiles, cells, per_cell², n)."""
        tiles, rows, columns, count = labels.shape
        side = self.per_cell
        labels = labels.reshape(tiles, rows // side, side, columns // side, side, count)
        return labels.permute(0, 1, 3, 2, 4, 5).reshape(tiles, -1, side * side, count)


def _losses(
    logits: torch.Tensor, classes: tuple[int, ...], targets: torch.Tensor, nothing_weight: float = NOTHING_WEIGHT
) -> torch.Tensor:
    """Average the cross-entropies of several readers side by side in the last dimension."""
    logits = logits.flatten(0, -2).float()
    targets = targets.flatten(0, -2)
    total = logits.new_zeros(())
    for index, part in enumerate(logits.split(classes, dim=-1)):
        weight = part.new_ones(part.shape[-1])
        weight[0] = nothing_weight
        total = total + nn.functional.cross_entropy(part, targets[:, index], weight=weight)
    return total / len(classes)


def pull_loss(tokens: torch.Tensor, oracle: torch.Tensor, labels: dict[str, torch.Tensor]) -> torch.Tensor:
    """Measure how far image tokens are from the oracle's, as a weighted mean square per channel.

    Args:
        tokens: Projected image tokens (tiles, cells, hidden).
        oracle: What they should be (tiles, cells, hidden).
        labels: See `TileLabels`.

    Returns:
        The loss.
    """
    error = (tokens.float() - oracle.float()).square().mean(-1)  # (tiles, cells)
    weight = torch.where(labels["kinds"] > 0, 1.0, NOTHING_WEIGHT)
    return (error * weight).sum() / weight.sum()
