"""Seeded batches: scenes, their tiles and labels, and the conversations about them as token ids.

Batch number i of a stage is a function of the seed, the stage's name and i alone: training resumes exactly where it
stopped, and two processes draw different batches by taking different numbers.
"""

import json
import math
import random
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch

from training.oracle import as_tensors
from training.pictures import Scene, draw_page, draw_scene, log_uniform
from training.questions import Turn, ask, small_talk
from training.tiles import Geometry, TileLabels, cut_pixels, label_tiles
from training.tokenizer import SPECIAL_TOKENS, SYSTEM_MESSAGE


IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
CONFIG_FILE = Path(__file__).parent / "config.json"


def load_config() -> dict[str, Any]:
    """Read the one configuration file of the training."""
    return json.loads(CONFIG_FILE.read_text())


class PromptEncoder:
    """Token ids of conversations, equal to those that the package's `chat` builds (a test compares them).

    Args:
        model_file: SentencePiece model.
        image_tokens: Image tokens per tile.
    """

    def __init__(self, model_file: Path, image_tokens: int) -> None:
        self.pieces = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
        first = self.pieces.get_piece_size()
        self.special = {token: first + index for index, token in enumerate(SPECIAL_TOKENS)}
        self.image_token_id = self.special["<IMG_CONTEXT>"]
        self.image_tokens = image_tokens
        self.text = lru_cache(maxsize=100_000)(self._text)

    def _text(self, text: str) -> tuple[int, ...]:
        return tuple(self.pieces.encode(text))

    def picture(self, num_tiles: int) -> list[int]:
        """Give the placeholder of a picture, or nothing for no tiles."""
        if not num_tiles:
            return []
        return [
            self.special["<img>"],
            *[self.image_token_id] * (self.image_tokens * num_tiles),
            self.special["</img>"],
        ]

    def conversation(self, turns: list[Turn], num_tiles: int) -> tuple[list[int], list[range]]:
        """Encode a conversation.

        Args:
            turns: Questions with their answers.
            num_tiles: Tiles of the picture, 0 for none.

        Returns:
            Token ids, and for each turn the positions of its answer, `<|im_end|>` included.
        """
        start, end = self.special["<|im_start|>"], self.special["<|im_end|>"]
        ids = [self.pieces.bos_id(), start, *self.text(f"system\n{SYSTEM_MESSAGE}"), end]
        answers = []
        for index, turn in enumerate(turns):
            user = self.text(f"user\n{turn.question}")
            if index == 0 and num_tiles:
                # A newline stands between the placeholder of the picture and the question.
                user = (*self.text("user\n"), *self.picture(num_tiles), *self.text(f"\n{turn.question}"))
            asked = [start, *user, end, start, *self.text("assistant\n")]
            answer = [*self.text(turn.answer), end]
            ids += asked + answer
            answers.append(range(len(ids) - len(answer), len(ids)))
        return ids, answers


@dataclass
class Batch:
    """What one training step sees; every picture of a batch has the same number of tiles.

    Args:
        pixel_values: Normalised tiles (tiles, 3, height, width), or None.
        labels: Label tensors by name, or None without pictures.
        input_ids: Conversations, padded on the right (batch, length), or None.
        weights: Weight of predicting each token (batch, length), 1/sqrt(length) inside an answer, else 0; or None.
        answers: (task, row, positions) of every answer.
        size: Number of samples.
    """

    pixel_values: torch.Tensor | None
    labels: dict[str, torch.Tensor] | None
    input_ids: torch.Tensor | None
    weights: torch.Tensor | None
    answers: list[tuple[str, int, range]]
    size: int


def normalise(tiles: np.ndarray, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Turn uint8 tiles (tiles, height, width, 3) into normalised pixel values (tiles, 3, height, width)."""
    pixels = torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
    return ((pixels - mean) / std).to(dtype).contiguous()


class Batches:
    """Draws the batches of one stage.

    Args:
        config: The whole configuration.
        stage: Name of the stage, a key of `config["stages"]`.
        encoder: Encodes conversations; None for a stage without text.
    """

    def __init__(self, config: dict[str, Any], stage: str, encoder: PromptEncoder | None) -> None:
        self.stage, self.settings, self.pictures = stage, config["stages"][stage], config["pictures"]
        self.seed, self.encoder = config["seed"], encoder
        vision = config["model"]["vision_config"]
        self.geometry = Geometry(
            vision["image_size"],
            vision["patch_size"],
            round(vision["patch_size"] / config["model"]["downsample_ratio"]),
        )

    def scene(self, rng: random.Random, grid: tuple[int, int]) -> Scene:
        """Draw a scene whose canvas suits a grid of (columns, rows) tiles."""
        tile, sizes = self.geometry.tile_size, self.pictures
        stretch = log_uniform(rng, *sizes["stretch"])
        zoom = log_uniform(rng, *sizes["zoom"]) if max(grid) == 1 else log_uniform(rng, *sizes["zoom_many_tiles"])
        width = max(64, round(grid[0] * tile * zoom * stretch))
        height = max(64, round(grid[1] * tile * zoom / stretch))
        low, high = sizes["number_size"]
        low = max(low, sizes["smallest_font"] / zoom)
        # A small picture may be enlarged to many tiles: what is large there is read from the thumbnail.
        high = max(low, high * math.sqrt(grid[0] * grid[1]))
        if rng.random() < self.settings.get("page_share", 0):
            return draw_page(rng, (width, height), (low * zoom, high * zoom))
        shapes = rng.choices(range(len(sizes["shape_counts"])), sizes["shape_counts"])[0]
        digits = rng.choices(range(len(sizes["digit_counts"])), sizes["digit_counts"])[0]
        if not shapes and not digits:
            shapes = 1
        return draw_scene(rng, (width, height), shapes, digits, log_uniform(rng, low, high) * zoom)

    def grid(self, rng: random.Random) -> tuple[int, int] | None:
        """Choose the grid of a batch, or None for a batch without pictures."""
        kinds = self.settings["grids"]
        name = rng.choices(list(kinds), list(kinds.values()))[0]
        if name == "none":
            return None
        columns, rows = map(int, name.split("x"))
        return (rows, columns) if rng.random() < 0.5 else (columns, rows)

    def batch(self, number: int, with_pixels: bool) -> Batch:
        """Draw batch `number`.

        Args:
            number: Any number; the same number gives the same batch.
            with_pixels: Whether to cut pixels too, or labels only.

        Returns:
            The batch.
        """
        rng = random.Random(f"{self.seed} {self.stage} {number}")
        grid = self.grid(rng)
        num_tiles = 0 if grid is None else grid[0] * grid[1] + (max(grid) > 1)
        size = max(2, round(self.settings["tiles_per_batch"] / max(1, num_tiles)))
        labels, tiles, talks = [], [], []
        for _ in range(size):
            if grid is None:
                talks.append(small_talk(rng))
                continue
            scene = self.scene(rng, grid)
            for part in [grid, (1, 1)] if num_tiles > 1 else [grid]:
                labels.append(label_tiles(scene, part, self.geometry))
                if with_pixels:
                    tiles.append(cut_pixels(scene, part, self.geometry.tile_size))
            if self.encoder:
                talks.append(ask(rng, scene, rng.randint(*self.settings["turns"]), self.settings["task_weights"]))
        return Batch(
            normalise(np.concatenate(tiles), torch.bfloat16) if tiles else None,
            as_tensors(TileLabels.stack(labels)) if labels else None,
            *self._texts(talks, num_tiles),
            size,
        )

    def _texts(self, talks: list[list[Turn]], num_tiles: int) -> tuple[torch.Tensor | None, torch.Tensor | None, list]:
        if not self.encoder:
            return None, None, []
        encoded = [self.encoder.conversation(turns, num_tiles) for turns in talks]
        length = max(len(ids) for ids, _ in encoded)
        input_ids = torch.full((len(encoded), length), self.encoder.pieces.eos_id())
        weights = torch.zeros(len(encoded), length)
        answers = []
        for row, (turns, (ids, spans)) in enumerate(zip(talks, encoded, strict=True)):
            input_ids[row, : len(ids)] = torch.tensor(ids)
            for turn, span in zip(turns, spans, strict=True):
                weights[row, span.start : span.stop] = len(span) ** -0.5
                answers.append((turn.task, row, span))
        return input_ids, weights, answers
