"""Seeded batches: scenes, their tiles and labels, and the conversations about them as token ids.

Batch number i of a stage is a function of the seed, the stage's name and i alone: training resumes exactly where it
stopped, and two processes draw different batches by taking different numbers.
"""

import json
import math
import random
import re
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch

from training.documents import DRAW
from training.oracle import as_tensors
from training.pictures import (
    CHINESE,
    NOTHING_HELD_OUT,
    NUMBER,
    WORD,
    Box,
    HeldOut,
    Scene,
    draw_page,
    draw_scene,
    log_uniform,
    random_number,
    random_text,
)
from training.questions import BOX_SCALE, Turn, about_image, ask, small_talk
from training.tiles import Geometry, TileLabels, box_steps, cut_pixels, label_tiles
from training.tokenizer import SPECIAL_TOKENS, SYSTEM_MESSAGE


IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
CONFIG_FILE = Path(__file__).parent / "config.json"
TAGS = re.compile("(</?ref>|</?box>)")
ONE_TILE = (1, 1)


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
        pieces = [self.pieces.id_to_piece(token) for token in range(first)]
        # Bytes that each token stands for; a byte is one token where the vocabulary has nothing for it.
        self.sizes = [
            1 if self.pieces.is_byte(token) else len(piece.replace("▁", " ").encode())
            for token, piece in enumerate(pieces)
        ] + [len(token) for token in SPECIAL_TOKENS]
        self.text = lru_cache(maxsize=100_000)(self._text)

    def _text(self, text: str) -> tuple[int, ...]:
        """Encode text; grounding tags become their tokens, and what a box says is spelled."""
        ids = []
        for index, part in enumerate(TAGS.split(text)):
            if index % 2:
                ids.append(self.special[part])
            else:
                ids += self.spell(part) if part.startswith("[[") else self.pieces.encode(part)
        return tuple(ids)

    def _places(self, before: str, turn: Turn, start: int) -> list[tuple[int, Box]]:
        """Find what a question names among the tokens of `before` and itself; the first has position `start`."""
        places = [self._token_at(before + turn.question, len(before) + last) for last, _ in turn.named]
        boxes = [box for _, box in turn.named]
        return [(start + place, box) for place, box in zip(places, boxes, strict=True) if places.count(place) == 1]

    def _token_at(self, text: str, index: int) -> int:
        """Tell which token of a text holds the last byte of the character at `index`."""
        wanted = len(text[: index + 1].encode())
        ends = accumulate(self.sizes[token] for token in self.text(text))
        return next(number for number, end in enumerate(ends) if end >= wanted)

    def spell(self, text: str) -> list[int]:
        """Encode text with one token for each character."""
        return [self.pieces.piece_to_id(char.replace(" ", "▁")) for char in text]

    def picture(self, num_tiles: int) -> list[int]:
        """Give the placeholder of a picture of so many tiles."""
        return [
            self.special["<img>"],
            *[self.image_token_id] * (self.image_tokens * num_tiles),
            self.special["</img>"],
        ]

    def _pictures(self, num_tiles: list[int]) -> list[int]:
        """Give what stands before the first question: a line for each picture, numbered if there are several."""
        if len(num_tiles) == 1:
            return [*self.picture(num_tiles[0]), *self.text("\n")]
        ids = []
        for number, count in enumerate(num_tiles, start=1):
            ids += [*self.text(f"Image-{number}: "), *self.picture(count), *self.text("\n")]
        return ids

    def conversation(
        self, turns: list[Turn], num_tiles: list[int]
    ) -> tuple[list[int], list[range], list[tuple[int, Box]]]:
        """Encode a conversation.

        Args:
            turns: Questions with their answers.
            num_tiles: Tiles of each picture, all shown before the first question.

        Returns:
            Token ids; for each turn the positions of its answer, `<|im_end|>` included; for what the questions name,
            the position of its name's last token and its box. Names that end in the same token are left out.
        """
        start, end = self.special["<|im_start|>"], self.special["<|im_end|>"]
        ids = [self.pieces.bos_id(), start, *self.text(f"system\n{SYSTEM_MESSAGE}"), end]
        answers, names = [], []
        for index, turn in enumerate(turns):
            ids.append(start)
            before = "user\n"
            if index == 0 and num_tiles:
                ids += [*self.text(before), *self._pictures(num_tiles)[:-1]]
                before = "\n"
            names += self._places(before, turn, len(ids))
            ids += [*self.text(before + turn.question), end, start, *self.text("assistant\n")]
            answer = [*(self.spell(turn.answer) if turn.spelled else self.text(turn.answer)), end]
            answers.append(range(len(ids), len(ids) + len(answer)))
            ids += answer
        return ids, answers, names


@dataclass
class Batch:
    """What one training step sees; every sample of a batch has the same number of pictures and tiles.

    Args:
        size: Number of samples.
        pixel_values: Normalised tiles (tiles, 3, height, width), or None.
        labels: Label tensors by name, or None without pictures.
        input_ids: Conversations, padded on the right (batch, length), or None.
        weights: Weight of predicting each token (batch, length), 1/sqrt(length) inside an answer, else 0; or None.
        position_ids: Position of each token (batch, length), now and then with gaps before tiles; or None.
        answers: (task, row, positions) of every answer.
        named: For each thing named in a question, row and position of its name's last token, and the steps of
            `BOX_STEPS` of its left, top, right and bottom edge within the picture (things, 6); or None.
    """

    size: int
    pixel_values: torch.Tensor | None
    labels: dict[str, torch.Tensor] | None
    input_ids: torch.Tensor | None = None
    weights: torch.Tensor | None = None
    position_ids: torch.Tensor | None = None
    answers: list[tuple[str, int, range]] = field(default_factory=list)
    named: torch.Tensor | None = None


def normalise(tiles: np.ndarray, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Turn uint8 tiles (tiles, height, width, 3) into normalised pixel values (tiles, 3, height, width)."""
    pixels = torch.from_numpy(tiles).permute(0, 3, 1, 2).contiguous()  # moved as bytes: a quarter of the floats
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
    return pixels.float().div_(255).sub_(mean).div_(std).to(dtype)


class Batches:
    """Draws the batches of one stage.

    Args:
        config: The whole configuration.
        stage: Name of the stage, a key of `config["stages"]`.
        encoder: Encodes conversations; None for a stage without text.
    """

    def __init__(self, config: dict[str, Any], stage: str, encoder: PromptEncoder | None) -> None:
        self.stage, self.settings = stage, config["stages"][stage]
        self.pictures = config["pictures"] | self.settings.get("pictures", {})
        self.seed, self.encoder = config["seed"], encoder
        vision = config["model"]["vision_config"]
        self.geometry = Geometry(
            vision["image_size"],
            vision["patch_size"],
            round(vision["patch_size"] / config["model"]["downsample_ratio"]),
        )

    def scene(self, rng: random.Random, grid: tuple[int, int], held_out: HeldOut = NOTHING_HELD_OUT) -> Scene:
        """Draw a scene whose canvas suits a grid of (columns, rows) tiles.

        Args:
            rng: Source of everything that is random.
            grid: (columns, rows).
            held_out: What to take from what training never shows.

        Returns:
            The scene; it shows something.
        """
        scene = self._scene(rng, grid, held_out)
        while not scene.things:  # now and then the only text finds no place
            scene = self._scene(rng, grid, held_out)
        return scene

    def _scene(self, rng: random.Random, grid: tuple[int, int], held_out: HeldOut) -> Scene:
        tile, sizes = self.geometry.tile_size, self.pictures
        single = grid == ONE_TILE
        stretch = log_uniform(rng, *sizes["stretch"])
        zoom = log_uniform(rng, *sizes["zoom" if single else "zoom_many_tiles"])
        size = (max(64, round(grid[0] * tile * zoom * stretch)), max(64, round(grid[1] * tile * zoom / stretch)))

        def font_size(name: str) -> float:
            low, high = sizes[name]
            low = max(low, sizes["smallest_font"] / zoom)
            # A small picture may be enlarged to many tiles: what is large there is read from the thumbnail.
            return zoom * log_uniform(rng, low, max(low, high * math.sqrt(grid[0] * grid[1])))

        if rng.random() < self.settings.get("page_share", 0):
            low, high = sizes["page_font_size"]
            low = max(low, sizes["smallest_font"] / zoom)
            return draw_page(rng, size, (low * zoom, max(low, high) * zoom))
        layouts = sizes["layouts"]
        layout = rng.choices(list(layouts), list(layouts.values()))[0]
        if layout in DRAW:
            return DRAW[layout](rng, size, self.geometry.cell_size * zoom, font_size("document_font_size"), held_out)
        name = "font_size" if single else "font_size_many_tiles"
        kinds = [self._text_kind(rng) for _ in range(self._texts_of(rng, layout, single))]
        if layout == "number":
            kinds = [NUMBER]
        texts = [(kind, self._words(rng, kind, layout, held_out.words), font_size(name)) for kind in kinds]
        counts = sizes["shape_counts"]
        shapes = rng.choices(range(1, len(counts) + 1), counts)[0] if layout == "shapes" else rng.randint(0, 2)
        return draw_scene(rng, size, texts, shapes, held_out)

    def _text_kind(self, rng: random.Random) -> str:
        return rng.choices((NUMBER, WORD, CHINESE), self.pictures["text_kinds"])[0]

    def _texts_of(self, rng: random.Random, layout: str, single: bool) -> int:
        if layout == "texts":
            return rng.randint(2, 3) if single else rng.randint(2, 5)
        return int(layout in ("text", "number"))

    def _words(self, rng: random.Random, kind: str, layout: str, held_out: bool) -> str:
        if layout == "number":
            return random_number(rng, rng.choices((1, 2, 3, 4), self.pictures["digit_counts"])[0])
        text = random_text(rng, kind, held_out)
        if kind == WORD and layout == "text" and rng.random() < self.pictures["line_share"]:
            text = " ".join([text, *(random_text(rng, kind, held_out) for _ in range(rng.randint(1, 2)))])
        return text

    def grid(self, rng: random.Random) -> tuple[int, tuple[int, int]]:
        """Choose how many pictures each sample of a batch has, and their grid of (columns, rows)."""
        kinds = self.settings["grids"]
        name = rng.choices(list(kinds), list(kinds.values()))[0]
        if name in ("none", "pair"):
            return (2 if name == "pair" else 0), ONE_TILE
        columns, rows = map(int, name.split("x"))
        return 1, (rows, columns) if rng.random() < 0.5 else (columns, rows)

    def batch(self, number: int, with_pixels: bool) -> Batch:
        """Draw batch `number`.

        Args:
            number: Any number; the same number gives the same batch.
            with_pixels: Whether to cut pixels too, or labels only.

        Returns:
            The batch.
        """
        rng = random.Random(f"{self.seed} {self.stage} {number}")
        pictures, grid = self.grid(rng)
        num_tiles = grid[0] * grid[1] + (grid != ONE_TILE)
        size = max(2, round(self.settings["tiles_per_batch"] / max(1, num_tiles * pictures)))
        labels, tiles, talks = [], [], []
        for _ in range(size):
            scenes = [self.scene(rng, grid) for _ in range(pictures)]
            for scene in scenes:
                for part in [grid, ONE_TILE] if num_tiles > 1 else [grid]:
                    labels.append(label_tiles(scene, part, self.geometry))
                    if with_pixels:
                        tiles.append(cut_pixels(scene, part, self.geometry.tile_size))
            if self.encoder:
                talks.append(self._talk(rng, scenes))
        return Batch(
            size=size,
            pixel_values=normalise(np.concatenate(tiles), torch.bfloat16) if tiles else None,
            labels=as_tensors(TileLabels.stack(labels)) if labels else None,
            **self._texts(rng, talks, [num_tiles] * pictures),
        )

    def _talk(self, rng: random.Random, scenes: list[Scene]) -> list[Turn]:
        weights, turns = self.settings["task_weights"], rng.randint(*self.settings["turns"])
        if not scenes:
            return small_talk(rng)
        if len(scenes) == 1:
            return ask(rng, scenes[0], turns, weights)
        talk = []
        for _ in range(turns):
            number = rng.randrange(len(scenes))
            talk += [about_image(turn, number + 1) for turn in ask(rng, scenes[number], 1, weights)]
        return talk

    def _texts(self, rng: random.Random, talks: list[list[Turn]], num_tiles: list[int]) -> dict[str, Any]:
        if not self.encoder:
            return {}
        encoded = [self.encoder.conversation(turns, num_tiles) for turns in talks]
        length = max(len(ids) for ids, *_ in encoded)
        input_ids = torch.full((len(encoded), length), self.encoder.pieces.eos_id())
        weights = torch.zeros(len(encoded), length)
        answers, named = [], []
        for row, (turns, (ids, spans, places)) in enumerate(zip(talks, encoded, strict=True)):
            input_ids[row, : len(ids)] = torch.tensor(ids)
            for turn, span in zip(turns, spans, strict=True):
                weights[row, span.start : span.stop] = len(span) ** -0.5
                answers.append((turn.task, row, span))
            named += [[row, place, *box_steps(box, (BOX_SCALE, BOX_SCALE))] for place, box in places]
        position_ids = None
        if num_tiles and rng.random() < self.settings["gap_share"]:
            position_ids = torch.stack([self._with_gaps(rng, row) for row in input_ids])
        return {
            "input_ids": input_ids,
            "weights": weights,
            "position_ids": position_ids,
            "answers": answers,
            "named": torch.tensor(named, dtype=torch.long).reshape(-1, 6),
        }

    def _with_gaps(self, rng: random.Random, ids: torch.Tensor) -> torch.Tensor:
        """Number tokens with gaps before tiles and questions, to know positions of far more tiles than are drawn.

        As in arXiv 2309.10400, which trains on short texts for long ones.
        """
        places = (ids == self.encoder.image_token_id).nonzero()[:, 0]
        starts = places[:: self.encoder.image_tokens].tolist() + [int(places[-1]) + 1]
        shares = [rng.expovariate(1) for _ in starts]
        left = rng.uniform(0, self.settings["longest_gap"])
        steps = torch.ones_like(ids)
        for start, share in zip(starts, shares, strict=True):
            steps[start] += int(left * share / sum(shares))
        return steps.cumsum(0) - 1
