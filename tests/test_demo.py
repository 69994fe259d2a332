"""The demo: what a tab holds, what is drawn, and the page itself in a headless browser."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from transformers import AutoProcessor

from examples.demo.conversation import RESOLUTIONS, Conversation
from examples.demo.drawing import LARGEST, SMALLEST, draw_tiles, on_screen, upright
from examples.demo.words import WORDS


ROOT = Path(__file__).resolve().parent.parent
SHAPES, SIGN = (str(ROOT / "examples" / name) for name in ("shapes.png", "sign.png"))
PATIENCE = 300  # seconds; what is waited for comes sooner on any machine that is not overloaded


class Session:
    """A session that says its words and remembers how it was asked."""

    def __init__(self, answer=("one ", "two ", "three")):
        self.history, self.asked, self.words, self.is_closed = [], [], answer, False

    def stream(self, question, **kwargs):
        self.asked.append((question, kwargs))
        said = ""
        try:
            for word in self.words:
                said += word
                yield word
        finally:
            self.history.append((question, said))

    def close(self):
        self.is_closed = True


class Model:
    def __init__(self, **kwargs):
        self.session = Session(**kwargs)

    def start_chat(self, tokenizer):
        return self.session


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(ROOT, subfolder="tiny", trust_remote_code=True)


# Boxes


# Drawing


def differences(first, second):
    """Return where two pictures differ, as a box."""
    from PIL import ImageChops  # noqa: PLC0415

    return ImageChops.difference(first, second).getbbox()


def test_the_grid_is_drawn_where_the_picture_is_cut(processor):
    grey = Image.new("RGB", (600, 300), "grey")
    plan = processor.image_processor.plan((600, 300))
    drawn = draw_tiles(grey, plan)
    assert (plan.columns, plan.rows, drawn.size) == (2, 1, (640, 320))
    assert drawn.getpixel((160, 160)) == grey.getpixel((0, 0))
    row = [x for x in range(640) if drawn.getpixel((x, 160)) != grey.getpixel((0, 0))]
    assert {*range(4), *range(316, 324), *range(636, 640)} == set(row)
    assert grey.getcolors() == [(180_000, (128, 128, 128))], "the picture stays as it is"


@pytest.mark.parametrize(("size", "longer"), [((9, 3), SMALLEST), ((1000, 900), 1000), ((400, 8000), LARGEST)])
def test_drawings_have_a_size_for_the_screen(size, longer):
    assert max(on_screen(Image.new("L", size)).size) == longer


def test_pictures_are_shown_upright_and_opaque(tmp_path):
    turned = Image.new("RGBA", (30, 20), (255, 0, 0, 0))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    seen = upright(tmp_path / "turned.png")
    assert (seen.size, seen.mode, seen.getpixel((0, 0))) == ((20, 30), "RGB", (255, 255, 255))


# One tab


def test_the_first_question_brings_the_picture(processor):
    model = Model()
    conversation = Conversation(model, processor, [SHAPES])
    assert list(conversation.ask("What?")) == ["one ", "one two ", "one two three"]
    assert list(conversation.ask("And?"))[-1] == "one two three"
    (first, given), second = model.session.asked
    assert (first, given["num_patches_list"], len(given["pixel_values"])) == ("What?", [3], 3)
    assert second == ("And?", {})


def test_several_pictures_are_introduced(processor):
    model = Model()
    list(Conversation(model, processor, [SHAPES, SIGN]).ask("Which?"))
    question, given = model.session.asked[0]
    assert question == "Image-1: <image>\nImage-2: <image>\nWhich?"
    assert given["num_patches_list"] == [3, 1]


def test_a_question_may_place_the_pictures_itself(processor):
    model = Model()
    list(Conversation(model, processor, [SHAPES, SIGN]).ask("<image> or <image>?"))
    assert model.session.asked[0][0] == "<image> or <image>?"


def test_without_pictures_it_is_text_alone(processor):
    model = Model()
    list(Conversation(model, processor).ask("Hello"))
    assert model.session.asked == [("Hello", {})]


@pytest.mark.parametrize(("resolution", "num_tiles"), [("low", 1), ("auto", 13), ("high", 41)])
def test_resolutions(processor, tmp_path, resolution, num_tiles):
    path = tmp_path / "large.png"
    Image.new("RGB", (1600, 1000 if resolution == "high" else 1200)).save(path)
    (picture,) = Conversation(Model(), processor, [str(path)], resolution).pictures
    assert picture.plan.num_tiles == num_tiles
    assert picture.tile_tokens == 64


def test_broken_pictures_are_named_and_the_others_stay(processor, tmp_path):
    text, half = tmp_path / "text.png", tmp_path / "half.png"
    text.write_text("no picture")
    half.write_bytes(Path(SHAPES).read_bytes()[:2000])
    conversation = Conversation(Model(), processor, [str(text), SHAPES, str(half)])
    assert [picture.name for picture in conversation.pictures] == ["shapes.png"]
    assert set(conversation.broken) == {"text.png", "half.png"}
    assert "damaged" in conversation.broken["half.png"]


def test_stop_keeps_what_was_said(processor):
    model = Model()
    conversation = Conversation(model, processor)
    answer = conversation.ask("Hello")
    assert next(answer) == "one "
    conversation.stop()
    assert list(answer) == []
    assert model.session.history == [("Hello", "one ")]
    assert list(conversation.ask("Again"))[-1] == "one two three"


def test_close_waits_for_an_answer_in_progress(processor):
    model = Model()
    conversation = Conversation(model, processor)
    answer = conversation.ask("Hello")
    next(answer)
    conversation.close()
    assert not model.session.is_closed
    assert list(answer) == []
    assert model.session.is_closed


def test_close_frees_at_once(processor):
    model = Model()
    Conversation(model, processor).close()
    assert model.session.is_closed


def test_boxes_are_drawn_on_the_picture_that_is_named(processor):
    conversation = Conversation(Model(), processor, [SHAPES, SIGN])
    box = "<box>[[100,100,900,900]]</box>"
    sizes = [on_screen(picture.image).size for picture in conversation.pictures]
    assert conversation.draw_boxes("Where?", box).size == sizes[0]
    assert conversation.draw_boxes("Where in Image-2?", box).size == sizes[1]
    assert conversation.draw_boxes("Where in Image-12?", box).size == sizes[0]
    assert conversation.draw_boxes("Where?", "nowhere") is None
    assert Conversation(Model(), processor).draw_boxes("Where?", box) is None


# Words and packages


def test_both_languages_say_everything():
    english, chinese = WORDS["en"], WORDS["zh"]
    assert english.keys() == chinese.keys() >= set(RESOLUTIONS)
    for name in english:
        assert set(re.findall(r"\{\w*\}", english[name])) == set(re.findall(r"\{\w*\}", chinese[name])), name


def pins(path):
    return dict(line.split("==") for line in path.read_text("utf-8").splitlines() if "==" in line)


def test_the_demo_has_the_versions_of_the_rest():
    rest, demo = pins(ROOT / "requirements.txt"), pins(ROOT / "examples" / "demo" / "requirements.txt")
    # Gradio does not take the newest Pillow yet; nothing else may differ.
    assert {name for name in rest.keys() & demo.keys() if rest[name] != demo[name]} <= {"pillow"}


# The page in a browser


@pytest.fixture(scope="module")
def address():
    """Start the page as `make demo` does, and return its address."""
    pytest.importorskip("gradio", reason="the page needs Gradio: run `make test-slow`, or install the extra `demo`")
    command = [sys.executable, "-u", "-m", "examples.demo"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        try:
            for line in server.stdout:
                if found := re.search(r"http://[\d.]+:\d+", line):
                    yield found[0]
                    break
            else:
                pytest.fail(f"the page did not start; exit status {server.wait()}")
        finally:
            server.terminate()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A headless Chromium of the system; nothing is downloaded."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="the browser is driven by selenium")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("no chromium and chromedriver here (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    profile = tmp_path_factory.mktemp("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", f"--user-data-dir={profile}"):
        options.add_argument(argument)
    options.add_argument("--window-size=1400,1480")
    options.add_argument("--lang=en")
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    opened.set_script_timeout(PATIENCE)
    yield opened
    opened.quit()


class Tab:
    """What a person does in a tab of the page and sees there."""

    def __init__(self, browser, address):
        self.browser = browser
        browser.get(address)
        self.until(lambda: self.find("#question textarea") and self.find("#files input[type=file]"))

    def find(self, selector):
        found = self.browser.find_elements("css selector", selector)
        return found[0] if found else None

    def until(self, condition):
        from selenium.common.exceptions import StaleElementReferenceException  # noqa: PLC0415
        from selenium.webdriver.support.ui import WebDriverWait  # noqa: PLC0415

        waiting = WebDriverWait(self.browser, PATIENCE, ignored_exceptions=(StaleElementReferenceException,))
        return waiting.until(lambda _: condition())

    def text(self, selector):
        return "\n".join(element.text for element in self.browser.find_elements("css selector", selector))

    def drop(self, *paths):
        self.find("#files input[type=file]").send_keys("\n".join(map(str, paths)))

    def press(self, selector, text):
        next(
            element for element in self.browser.find_elements("css selector", selector) if text in element.text
        ).click()

    def answers(self):
        return [element.text.strip() for element in self.browser.find_elements("css selector", "#chat .bot.message")]

    def ask(self, question):
        """Ask, and return the answer when it is complete."""
        before = len(self.answers())
        box = self.find("#question textarea")
        box.send_keys(question + "\n")
        self.until(lambda: self.find("#question .submit-button") and len(self.answers()) > before)
        self.until(lambda: "Loading content" not in self.text("#chat"))  # a picture on its way hides its message
        return self.answers()[before]


@pytest.fixture
def tab(browser, address):
    return Tab(browser, address)


@pytest.mark.slow
def test_a_conversation_about_a_picture(tab, tmp_path):
    """Its last view is the README's image: DEMO_SCREENSHOT says where it is kept."""
    tab.drop(SHAPES)
    tab.until(lambda: "192 image tokens" in tab.text("#total"))
    assert "2 × 1 tiles · 128 tokens" in tab.text("#tiles")
    assert "thumbnail · 64 tokens" in tab.text("#tiles")
    assert tab.ask("What colour is the circle?") == "red"
    assert tab.ask("图中的五角星是什么颜色？") == "橙色"
    assert "<ref>orange star</ref><box>[[" in tab.ask("Give the box of <ref>orange star</ref>")
    tab.until(lambda: tab.find("#chat img"))
    picture = Path(os.environ.get("DEMO_SCREENSHOT") or tmp_path / "demo.png")
    assert tab.browser.save_screenshot(str(picture))
    assert Image.open(picture).size[0] >= 1000


@pytest.mark.slow
def test_an_example_is_filled_in(tab):
    tab.until(lambda: "What does the blue text say?" in tab.text("#examples"))
    row = next(row for row in tab.browser.find_elements("css selector", "#examples tr") if "blue text" in row.text)
    row.click()
    tab.until(lambda: "64 image tokens" in tab.text("#total"))
    assert tab.find("#question textarea").get_attribute("value") == "What does the blue text say?"


@pytest.mark.slow
def test_broken_pictures_other_words_and_another_resolution(tab, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_text("no picture")
    tab.drop(broken, SHAPES)
    tab.until(lambda: "192 image tokens" in tab.text("#total"))
    tab.until(lambda: "broken.png cannot be read" in tab.text("body"))
    tab.find("[data-testid=toast-close]").click()
    tab.ask("What number is written?")
    tab.press("#language label", "中文")
    tab.until(lambda: "192 个图像词元" in tab.text("#total"))
    assert tab.find("#question textarea").get_attribute("placeholder") == "您的问题"
    assert tab.answers() != [], "the conversation goes on"
    tab.press("#resolution label", "低")
    tab.until(lambda: "64 个图像词元" in tab.text("#total"))
    tab.until(lambda: tab.answers() == [])  # other tiles, another conversation


@pytest.mark.slow
def test_tabs_know_nothing_of_each_other(tab, address):
    first = tab.browser.current_window_handle
    tab.drop(SHAPES)
    tab.until(lambda: "192 image tokens" in tab.text("#total"))
    assert tab.ask("What colour is the circle?") == "red"
    tab.browser.switch_to.new_window("tab")
    second = Tab(tab.browser, address)
    assert second.ask("Hello"), "text alone"
    assert "192" not in second.text("#total")
    tab.browser.close()
    tab.browser.switch_to.window(first)
    assert tab.answers() == ["red"]
    assert tab.ask("What number is written?") == "4072"
