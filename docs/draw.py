"""Draws the images of the architecture and of a tile plan for the README and docs/.

Run it from the repository's root: `python docs/draw.py`, or `make pictures`.
"""

import sys
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from PIL import Image
from transformers import AutoImageProcessor


ROOT = Path(__file__).resolve().parent.parent
BLUE, GREEN, ORANGE, GREY, INK = "#dbe9ff", "#d9f2e0", "#ffe8cf", "#f1f3f5", "#1f2933"
GRID = "#1f6feb"


def _box(axes: Axes, left: float, bottom: float, width: float, title: str, details: str, colour: str) -> None:
    """Draw a box of height 1.5 with a title and what is in it."""
    patch = FancyBboxPatch(
        (left, bottom),
        width,
        1.5,
        boxstyle="round,pad=0,rounding_size=0.12",
        facecolor=colour,
        edgecolor=INK,
        linewidth=1,
    )
    axes.add_patch(patch)
    centre = left + width / 2
    axes.text(centre, bottom + 1.12, title, ha="center", va="center", fontsize=11, fontweight="bold", color=INK)
    axes.text(centre, bottom + 0.5, details, ha="center", va="center", fontsize=8.5, color=INK, linespacing=1.35)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], label: str = "") -> None:
    """Draw an arrow, its label above its middle, or beside it where it is vertical."""
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=13, color=INK, linewidth=1.2))
    if not label:
        return
    across, up = ((a + b) / 2 for a, b in zip(start, end, strict=True))
    if start[0] == end[0]:
        axes.text(across + 0.12, up, label, ha="left", va="center", fontsize=8, color="#52606d")
    else:
        axes.text(across, up + 0.12, label, ha="center", va="bottom", fontsize=8, color="#52606d")


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """Return an empty figure whose units are those of the drawing."""
    figure = Figure(figsize=(width * 0.75, height * 0.75))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    return figure, axes


def _show(axes: Axes, image: Image.Image, corner: tuple[float, float], size: tuple[float, float], colour: str) -> None:
    """Show an image stretched to a size, its lower left corner at a position, in a frame."""
    (left, bottom), (width, height) = corner, size
    axes.imshow(image, extent=(left, left + width, bottom, bottom + height), aspect="auto", zorder=1)
    axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=colour, linewidth=1.5, zorder=2))


def _caption(axes: Axes, centre: float, text: str) -> None:
    axes.text(centre, 1.05, text, ha="center", va="center", fontsize=10, color=INK)


def draw_architecture() -> Figure:
    """Draw how an image and a question become an answer, with the shapes of InternVL-Chat-V1-5."""
    figure, axes = _canvas(15, 6.4)
    _box(axes, 0.2, 4.5, 2.6, "Image", "any size, RGB", GREY)
    _box(axes, 4.2, 4.5, 2.9, "Tiles", "1 to 40 tiles of 448 × 448\nand a thumbnail", BLUE)
    _box(axes, 8.6, 4.5, 2.9, "InternViT-6B", "45 layers, width 3200\n1024 patches of 14 × 14", BLUE)
    _box(axes, 12.1, 2.35, 2.7, "Pixel shuffle", "2 × 2 patches → 1 token\n3200 → 12800", GREEN)
    _box(axes, 8.6, 2.35, 2.9, "Projector", "LayerNorm, Linear, GELU, Linear\n12800 → 6144 → 6144", GREEN)
    _box(axes, 0.2, 0.2, 2.6, "Question", "What is the total?", GREY)
    _box(axes, 4.2, 0.2, 2.9, "Tokenizer", "the prompt, with 256 image\ntokens for each tile", ORANGE)
    _box(axes, 8.6, 0.2, 2.9, "InternLM2-20B", "48 layers, width 6144\n48 heads in 8 groups", ORANGE)
    _box(axes, 12.1, 0.2, 2.7, "Answer", "The total is 6.30.", GREY)
    _arrow(axes, (2.8, 5.25), (4.2, 5.25), "tile plan")
    _arrow(axes, (7.1, 5.25), (8.6, 5.25), "(tiles, 3, 448, 448)")
    axes.plot((11.5, 13.45), (5.25, 5.25), color=INK, linewidth=1.2)
    axes.text(12.55, 5.37, "(tiles, 1024, 3200)", ha="center", va="bottom", fontsize=8, color="#52606d")
    _arrow(axes, (13.45, 5.27), (13.45, 3.85))
    _arrow(axes, (12.1, 3.1), (11.5, 3.1))
    _arrow(axes, (10.05, 2.35), (10.05, 1.7), "(tiles, 256, 6144), inserted")
    _arrow(axes, (2.8, 0.95), (4.2, 0.95))
    _arrow(axes, (7.1, 0.95), (8.6, 0.95), "(seq, 6144)")
    _arrow(axes, (11.5, 0.95), (12.1, 0.95))
    return figure


def draw_tile_plan() -> Figure:
    """Draw how an image is resized, cut and followed by its thumbnail."""
    image = Image.open(ROOT / "examples" / "shapes.png").convert("RGB")
    plan = AutoImageProcessor.from_pretrained(ROOT, trust_remote_code=True).plan((1600, 800))
    figure, axes = _canvas(13.6, 4.6)
    tile, left, bottom = 1.3, 5.6, 1.6
    width, height = plan.columns * tile, plan.rows * tile
    middle = bottom + height / 2

    _show(axes, image, (0.3, middle - 1), (4, 2), INK)
    _caption(axes, 2.3, "Image\n1600 × 800 pixels")
    _arrow(axes, (4.4, middle), (5.5, middle), "resize, cut")
    _show(axes, image, (left, bottom), (width, height), GRID)
    for number in range(plan.columns * plan.rows):
        row, column = divmod(number, plan.columns)
        corner = (left + column * tile, bottom + height - (row + 1) * tile)
        axes.add_patch(Rectangle(corner, tile, tile, fill=False, edgecolor=GRID, linewidth=2, zorder=2))
        badge = {"boxstyle": "round,pad=0.2", "facecolor": GRID, "edgecolor": "none"}
        position = (corner[0] + 0.08, corner[1] + tile - 0.08)
        axes.text(*position, str(number + 1), ha="left", va="top", fontsize=8, color="white", bbox=badge, zorder=3)
    size = "{} × {}".format(*plan.canvas_size)
    _caption(
        axes, left + width / 2, f"{plan.columns} × {plan.rows} tiles on a canvas of {size} pixels:\nthe closest ratio"
    )
    axes.text(11.25, middle, "+", ha="center", va="center", fontsize=22, color=INK)
    _show(axes, image, (11.7, middle - tile / 2), (tile, tile), GRID)
    _caption(axes, 11.7 + tile / 2, "Thumbnail:\nall of it in one tile")
    tokens = f"{plan.num_tiles} tiles × 256 = {plan.num_tiles * 256} image tokens"
    axes.text(6.8, 0.35, tokens, ha="center", va="center", fontsize=11, fontweight="bold", color=INK)
    axes.set(xlim=(0, 13.6), ylim=(0, 4.6))  # showing an image has changed them
    return figure


def main() -> int:
    """Write both images."""
    for name, draw in {"architecture": draw_architecture, "tiles": draw_tile_plan}.items():
        draw().savefig(ROOT / "docs" / f"{name}.png", dpi=120, facecolor="white")
    return 0


if __name__ == "__main__":
    sys.exit(main())
