"""Draws the training pictures: coloured shapes and texts, with exact labels of what is where.

Holds the scene description and what can be put anywhere on it; receipts, forms and charts are laid out in
`documents.py`. How a picture is cut into tiles is in `tiles.py`, what is asked about it in `questions.py`. Everything
is a function of a `random.Random`, so the same seed draws the same picture.
"""

import math
import random
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from training.words import random_chinese, random_word


COLOURS = {
    "red": (218, 38, 38),
    "orange": (245, 140, 25),
    "yellow": (238, 212, 36),
    "green": (38, 158, 66),
    "blue": (36, 84, 218),
    "purple": (136, 54, 176),
    "pink": (246, 132, 190),
    "black": (22, 22, 22),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond")
NUMBER, WORD, CHINESE, BAR = "number", "word", "chinese", "bar"
TEXTS = (NUMBER, WORD, CHINESE)
KINDS = (*SHAPES, *TEXTS, BAR)
# How often each of the texts is on a page.
PAGE_SHARES = (2, 4, 2)
Box = tuple[float, float, float, float]  # left, top, right, bottom

# Debian packages and the files used from them. Another system may install the same families anywhere below FONT_ROOTS.
FONT_ROOTS = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/Library/Fonts")
FONTS = {
    "fonts-dejavu-core": ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSerif.ttf", "DejaVuSansMono.ttf"),
    "fonts-liberation": (
        "LiberationSans-Regular.ttf",
        "LiberationSans-Bold.ttf",
        "LiberationSerif-Regular.ttf",
        "LiberationMono-Bold.ttf",
    ),
    "fonts-freefont-ttf": ("FreeSans.ttf", "FreeSerifBold.ttf"),
    "fonts-lato": ("Lato-Regular.ttf", "Lato-Bold.ttf"),
}
CHINESE_FONTS = {
    "fonts-wqy-zenhei": ("wqy-zenhei.ttc",),
    "fonts-arphic-uming": ("uming.ttc",),
    "fonts-noto-cjk": ("NotoSansCJK-Regular.ttc", "NotoSansCJK-Bold.ttc"),
}
# Never drawn in training: what is read in these was not learned by heart.
HELD_OUT_FONTS = {"fonts-liberation": ("LiberationSerif-Bold.ttf",), "fonts-freefont-ttf": ("FreeSansBold.ttf",)}
HELD_OUT_CHINESE_FONTS = {"fonts-wqy-microhei": ("wqy-microhei.ttc",)}


@dataclass(frozen=True)
class HeldOut:
    """What a picture may be made of that training never shows.

    Args:
        words: Dictionary words kept for evaluation.
        fonts: Fonts kept for evaluation.
        layouts: Receipts and forms set in another way.
    """

    words: bool = False
    fonts: bool = False
    layouts: bool = False


NOTHING_HELD_OUT = HeldOut()


@dataclass(frozen=True)
class Glyph:
    """One character of a written text.

    Args:
        char: The character.
        box: (left, top, right, bottom) in canvas pixels.
    """

    char: str
    box: Box


@dataclass(frozen=True)
class Thing:
    """Something drawn.

    Args:
        kind: One of `KINDS`.
        colour: A key of `COLOURS`.
        box: (left, top, right, bottom) in canvas pixels.
        text: What is written, for a text.
        glyphs: The characters of `text` and where they are.
    """

    kind: str
    colour: str
    box: Box
    text: str = ""
    glyphs: tuple[Glyph, ...] = ()


@dataclass
class Scene:
    """A picture and what it shows.

    Args:
        image: RGB picture.
        owner: 8-bit map of the same size: 0 for background, i + 1 where `things[i]` is.
        things: What was drawn, in drawing order.
        layout: "free", or the kind of document: "receipt", "form" or "chart".
        entries: Keys and values of a document, as written.
        values: The texts of these values, which are among `things`.
    """

    image: Image.Image
    owner: Image.Image
    things: list[Thing] = field(default_factory=list)
    layout: str = "free"
    entries: list[tuple[str, str]] = field(default_factory=list)
    values: list[Thing] = field(default_factory=list)

    @classmethod
    def blank(cls, size: tuple[int, int], background: tuple[int, int, int], layout: str = "free") -> "Scene":
        """Start with an empty canvas of (width, height) pixels."""
        return cls(Image.new("RGB", size, background), Image.new("L", size, 0), layout=layout)

    @property
    def shapes(self) -> list[Thing]:
        """The coloured shapes."""
        return [thing for thing in self.things if thing.kind in SHAPES]

    @property
    def texts(self) -> list[Thing]:
        """The numbers, words and Chinese texts."""
        return [thing for thing in self.things if thing.kind in TEXTS]


@lru_cache(maxsize=4)
def font_files(chinese: bool = False, held_out: bool = False) -> tuple[Path, ...]:
    """Find the installed fonts.

    Args:
        chinese: Whether to give those with Chinese characters.
        held_out: Whether to give those kept for evaluation.

    Returns:
        Paths in the order of the tables above, whatever the order on disk.

    Raises:
        FileNotFoundError: When none is installed.
    """
    latin, cjk = (HELD_OUT_FONTS, HELD_OUT_CHINESE_FONTS) if held_out else (FONTS, CHINESE_FONTS)
    fonts = cjk if chinese else latin
    installed = {}
    for root in FONT_ROOTS:
        for path in sorted(Path(root).expanduser().rglob("*.tt[cf]")):
            installed.setdefault(path.name, path)
    found = tuple(installed[name] for names in fonts.values() for name in names if name in installed)
    if not found:
        raise FileNotFoundError(
            f"No {'Chinese ' if chinese else ''}training font found below {', '.join(FONT_ROOTS)}. Install at least "
            f"one of the Debian packages {', '.join(fonts)} (apt-get install {next(iter(fonts))})."
        )
    return found


@lru_cache(maxsize=2048)
def load_font(path: Path, size: int) -> ImageFont.FreeTypeFont:
    """Open a font file in a size in pixels."""
    return ImageFont.truetype(str(path), size)


def _jitter(rng: random.Random, rgb: tuple[int, int, int], amount: int) -> tuple[int, int, int]:
    return tuple(max(0, min(255, channel + rng.randint(-amount, amount))) for channel in rgb)


def random_background(rng: random.Random) -> tuple[int, int, int]:
    """Choose white, a light shade or a dark one."""
    kind = rng.random()
    if kind < 0.4:
        return (255, 255, 255)
    if kind < 0.8:
        return tuple(rng.randint(215, 255) for _ in range(3))
    return tuple(rng.randint(0, 60) for _ in range(3))


def visible_colours(background: tuple[int, int, int]) -> list[str]:
    """Colours that stand out from the background by at least 110 of 441 (the RGB diagonal)."""
    return [name for name, rgb in COLOURS.items() if math.dist(rgb, background) >= 110]


def _overlaps(box: tuple, others: list[tuple], gap: float) -> bool:
    left, top, right, bottom = box
    return any(
        left < other[2] + gap and right > other[0] - gap and top < other[3] + gap and bottom > other[1] - gap
        for other in others
    )


def _place(rng: random.Random, size: tuple[int, int], extent: tuple[float, float], taken: list[tuple]) -> tuple | None:
    """Find a free place for a box of `extent` (width, height) on a canvas of `size`, or None after 24 tries."""
    free_width, free_height = size[0] - extent[0] - 4, size[1] - extent[1] - 4
    if free_width < 0 or free_height < 0:
        return None
    for _ in range(24):
        left, top = 2 + rng.random() * free_width, 2 + rng.random() * free_height
        box = (left, top, left + extent[0], top + extent[1])
        if not _overlaps(box, taken, gap=4):
            return box
    return None


def shape_outline(kind: str, box: Box, angle: float = 0.0) -> list[tuple[float, float]]:
    """Give the corners of a shape inscribed in a box.

    Args:
        kind: One of `SHAPES` except "circle".
        box: (left, top, right, bottom) in pixels.
        angle: Rotation about the centre in radians.

    Returns:
        Corners in drawing order.
    """
    if kind == "square":
        corners = [(-1, -1), (1, -1), (1, 1), (-1, 1)]
    elif kind == "triangle":
        corners = [(0, -1), (1, 0.85), (-1, 0.85)]
    elif kind == "diamond":
        corners = [(0, -1), (0.8, 0), (0, 1), (-0.8, 0)]
    elif kind == "cross":
        arm = 0.34
        corners = [(-arm, -1), (arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm)]
        corners += [(-x, -y) for x, y in corners]
    else:
        radii = [1.0, 0.42] * 5
        corners = [
            (radius * math.sin(math.pi * step / 5), -radius * math.cos(math.pi * step / 5))
            for step, radius in enumerate(radii)
        ]
    half_width, half_height = (box[2] - box[0]) / 2, (box[3] - box[1]) / 2
    centre_x, centre_y = box[0] + half_width, box[1] + half_height
    cosine, sine = math.cos(angle), math.sin(angle)
    return [
        (centre_x + half_width * (x * cosine - y * sine), centre_y + half_height * (x * sine + y * cosine))
        for x, y in corners
    ]


def draw_shape(scene: Scene, rng: random.Random, kind: str, colour: str, box: tuple) -> None:
    """Draw one shape inside a box.

    Args:
        scene: Drawn upon.
        rng: Source of the shade and the angle.
        kind: One of `SHAPES`.
        colour: A key of `COLOURS`.
        box: (left, top, right, bottom) in canvas pixels.
    """
    canvas, owner = ImageDraw.Draw(scene.image), ImageDraw.Draw(scene.owner)
    fill = _jitter(rng, COLOURS[colour], 18)
    index = len(scene.things) + 1
    if kind == "circle":
        canvas.ellipse(box, fill=fill)
        owner.ellipse(box, fill=index)
    else:
        # Small angles only: a square turned by 45 degrees is a diamond.
        corners = shape_outline(kind, box, rng.uniform(-0.12, 0.12))
        canvas.polygon(corners, fill=fill)
        owner.polygon(corners, fill=index)
    scene.things.append(Thing(kind, colour, box))


def add_shape(scene: Scene, rng: random.Random, kind: str, colour: str, share: tuple[float, float]) -> bool:
    """Draw one shape on a free place.

    Args:
        scene: Drawn upon.
        rng: Source of size, place and angle.
        kind: One of `SHAPES`.
        colour: A key of `COLOURS`.
        share: Smallest and largest diameter as shares of the shorter side.

    Returns:
        Whether a place was found.
    """
    diameter = rng.uniform(*share) * min(scene.image.size)
    box = _place(rng, scene.image.size, (diameter, diameter), [thing.box for thing in scene.things])
    if box is None:
        return False
    draw_shape(scene, rng, kind, colour, box)
    return True


def add_text(
    scene: Scene,
    rng: random.Random,
    kind: str,
    text: str,
    colour: str,
    size: float,
    held_out: HeldOut = NOTHING_HELD_OUT,
) -> bool:
    """Write a text on a free place in a random font.

    Args:
        scene: Drawn upon.
        rng: Source of font and place.
        kind: One of `TEXTS`.
        text: What to write.
        colour: A key of `COLOURS`.
        size: Font size in canvas pixels; made smaller when the canvas is too narrow.
        held_out: Whether to write in a font that training never shows.

    Returns:
        Whether a place was found.
    """
    path = rng.choice(font_files(kind == CHINESE, held_out.fonts))
    font = load_font(path, max(8, round(size)))
    if font.getlength(text) > scene.image.width - 8:
        font = load_font(path, max(8, int(size * (scene.image.width - 8) / font.getlength(text))))
    left, top, right, bottom = font.getbbox(text)
    box = _place(rng, scene.image.size, (right - left, bottom - top), [thing.box for thing in scene.things])
    if box is None:
        return False
    write_text(scene, rng, kind, text, colour, font, box)
    return True


def write_text(
    scene: Scene, rng: random.Random, kind: str, text: str, colour: str, font: ImageFont.FreeTypeFont, box: tuple
) -> None:
    """Write a text at a place.

    Args:
        scene: Drawn upon.
        rng: Source of the shade.
        kind: One of `TEXTS`.
        text: What to write.
        colour: A key of `COLOURS`.
        font: The font in its size.
        box: (left, top, right, bottom) of the ink in canvas pixels, as wide and high as the font writes the text.
    """
    left, top, _, _ = font.getbbox(text)
    origin = (round(box[0] - left), round(box[1] - top))
    ImageDraw.Draw(scene.image).text(origin, text, fill=_jitter(rng, COLOURS[colour], 14), font=font)
    ImageDraw.Draw(scene.owner).rectangle(box, fill=len(scene.things) + 1)
    edges = [origin[0] + font.getlength(text[:count]) for count in range(len(text) + 1)]
    glyphs = tuple(Glyph(char, (edges[i], box[1], edges[i + 1], box[3])) for i, char in enumerate(text))
    scene.things.append(Thing(kind, colour, box, text, glyphs))


def random_number(rng: random.Random, digits: int) -> str:
    """Give a number of so many digits, without a leading zero unless it is a single digit."""
    first = rng.choice("0123456789" if digits == 1 else "123456789")
    return first + "".join(rng.choice("0123456789") for _ in range(digits - 1))


def random_text(rng: random.Random, kind: str, held_out: bool = False) -> str:
    """Choose a number of up to four digits, a word or a Chinese text.

    Args:
        rng: Source of everything that is random.
        kind: One of `TEXTS`.
        held_out: Whether a word must be one that training never shows.

    Returns:
        The text.
    """
    if kind == NUMBER:
        return random_number(rng, rng.randint(1, 4))
    return random_chinese(rng) if kind == CHINESE else random_word(rng, held_out)


def draw_scene(
    rng: random.Random,
    size: tuple[int, int],
    texts: list[tuple[str, str, float]],
    shapes: int,
    held_out: HeldOut = NOTHING_HELD_OUT,
) -> Scene:
    """Draw texts, each in a colour of its own, and shapes.

    Args:
        rng: Source of everything that is random.
        size: (width, height) of the canvas in pixels.
        texts: Kind, text and font size in canvas pixels of each text to try.
        shapes: How many shapes to try; fewer are drawn when the canvas is full.
        held_out: Whether to write in fonts that training never shows.

    Returns:
        The scene.
    """
    background = random_background(rng)
    scene = Scene.blank(size, background)
    colours = visible_colours(background)
    # Texts go down first, for they are the hardest to place.
    for (kind, text, font_size), colour in zip(
        texts, rng.sample(colours, min(len(texts), len(colours))), strict=False
    ):
        add_text(scene, rng, kind, text, colour, font_size, held_out)
    largest = 0.62 if shapes == 1 else 0.42 if shapes == 2 else 0.34
    for _ in range(shapes):
        add_shape(scene, rng, rng.choice(SHAPES), rng.choice(colours), (0.13, largest))
    return scene


def draw_page(rng: random.Random, size: tuple[int, int], font_sizes: tuple[float, float]) -> Scene:
    """Draw a page full of texts in many sizes, fonts and colours: dense labels for the vision encoder.

    Args:
        rng: Source of everything that is random.
        size: (width, height) of the canvas in pixels.
        font_sizes: Smallest and largest font size in canvas pixels.

    Returns:
        The scene.
    """
    background = random_background(rng)
    scene = Scene.blank(size, background)
    colours = visible_colours(background)
    for _ in range(16):
        kind = rng.choices(TEXTS, PAGE_SHARES)[0]
        add_text(scene, rng, kind, random_text(rng, kind), rng.choice(colours), log_uniform(rng, *font_sizes))
    return scene


def log_uniform(rng: random.Random, low: float, high: float) -> float:
    """Draw from a distribution that is uniform in the logarithm."""
    return math.exp(rng.uniform(math.log(low), math.log(high)))
