"""The documents hold: their code runs as a reader would paste it, their commands and links exist, both cards agree.

Elsewhere run what needs more: the TRL block and its commands (`test_examples_finetune.py`), the blocks about the
family (`test_family_page.py`), `make chat` (`test_tiny.py`), `make demo` (`test_demo.py`).
"""

import io
import json
import re
import subprocess
import sys
import textwrap
import tokenize
from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForImageTextToText, AutoProcessor


pytestmark = pytest.mark.newest

ROOT = Path(__file__).resolve().parent.parent
CARDS = ("README.md", "README_zh.md")
PAGES = (*CARDS, *(page.relative_to(ROOT).as_posix() for page in sorted((ROOT / "docs").glob("*.md"))))
TEXT = {page: (ROOT / page).read_text("utf-8") for page in PAGES}
# Other documents whose links are checked.
DOCUMENTS = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/RESULTS.md", "tests/clients/README.md")
DOCUMENTS = (*PAGES, *DOCUMENTS, "tiny/README.md", "training/README.md")
PLACEHOLDER = re.compile(r'^path = "[\w.-]+"', flags=re.MULTILINE)  # stands for a checkpoint of the reader's
# "python" runs on a CPU in seconds; "py" needs more, and a test of its own that is counted here.
KINDS = {"python", "py", "bash", "json", "text", "bibtex"}
SPECIAL = {"docs/devices.md": 3, "docs/finetuning.md": 1, "docs/family.md": 1}
# Modules of other programs that pages call with `python -m`.
FOREIGN_MODULES = {"vlmeval"}
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", flags=re.DOTALL | re.MULTILINE)


def blocks(page, kind=None):
    """Return the kind and the text of each code block of a page, or the texts of one kind."""
    found = [(name, textwrap.dedent(text)) for _, name, text in FENCE.findall(TEXT[page])]
    return found if kind is None else [text for name, text in found if name == kind]


def prose(page):
    """Return a page without its code blocks."""
    return FENCE.sub("", TEXT[page])


def links(document):
    """Return the targets of a document's links and images."""
    text = FENCE.sub("", (ROOT / document).read_text("utf-8"))
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", text))


def anchors(document):
    """Return what GitHub makes of a document's headings."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", (ROOT / document).read_text("utf-8")), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def run(code, namespace, page):
    exec(compile(code, page, "exec"), namespace)


@pytest.fixture(scope="module")
def saved_folder(tiny_folder, tmp_path_factory):
    """What `save_pretrained` leaves: a folder that loads alone."""
    folder = tmp_path_factory.mktemp("saved") / "InternVL"
    AutoModelForImageTextToText.from_pretrained(tiny_folder, trust_remote_code=True, dtype="auto").save_pretrained(
        folder
    )
    AutoProcessor.from_pretrained(tiny_folder, trust_remote_code=True).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_of_a_kind_that_is_run(page):
    """A "py" block must be run by a test of its own: count it in SPECIAL when it is."""
    kinds = Counter(kind for kind, _ in blocks(page))
    assert kinds.keys() <= KINDS
    assert kinds["py"] == SPECIAL.get(page, 0)
    assert len(re.findall(r"^ *```", TEXT[page], flags=re.MULTILINE)) == 2 * kinds.total()
    for text in blocks(page, "py"):
        compile(text, page, "exec")
    for text in blocks(page, "json"):
        json.loads(text)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_python_blocks(page, saved_folder, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)  # the examples name images of the repository
    namespace = {}
    code = blocks(page, "python")
    assert PLACEHOLDER.search(code[0]), "the first block loads the model or the processor"
    for block in code:
        if page != "README.md":  # the same lines in float32, which CPUs without bf16 units compute ten times as fast
            block = block.replace("torch.bfloat16", "torch.float32")
        run(PLACEHOLDER.sub(f"path = {str(saved_folder)!r}", block), namespace, page)
    if page in CARDS:
        assert "red" in capsys.readouterr().out.splitlines()[0]


@pytest.fixture
def device_blocks(saved_folder, tmp_path, monkeypatch):
    """The blocks about quantization and GPUs, the first in two parts, and the names that they know from the page."""
    monkeypatch.chdir(tmp_path)  # the first one saves a model
    quantized, offloaded, spread = blocks("docs/devices.md", "py")
    nf4, torchao, int8 = quantized.partition("from torchao")
    names = {"torch": torch, "path": str(saved_folder), "AutoModelForImageTextToText": AutoModelForImageTextToText}
    return (nf4, torchao + int8, offloaded, spread), names


def test_nf4_block(device_blocks):
    pytest.importorskip("bitsandbytes")
    (nf4, *_), names = device_blocks
    run(nf4, names, "docs/devices.md")
    again = AutoModelForImageTextToText.from_pretrained("InternVL-Chat-V1-5-nf4", trust_remote_code=True)
    assert again.is_loaded_in_4bit


def test_torchao_block(device_blocks):
    pytest.importorskip("torchao")
    (nf4, int8, *_), names = device_blocks
    run(nf4.split("nf4 =")[0] + int8, names, "docs/devices.md")
    assert names["model"].is_quantized


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="the blocks name GPUs")
def test_blocks_for_gpus(device_blocks):
    pytest.importorskip("bitsandbytes")
    (nf4, _, offloaded, spread), names = device_blocks
    run(nf4 + offloaded, names, "docs/devices.md")
    assert names["model"].vision_model.embeddings.patch_embedding.weight.device.type in ("cpu", "meta")
    run(spread, names, "docs/devices.md")
    assert names["model"].device.type == "cuda"


def test_folder_of_the_embedded_checkpoint(tmp_path):
    (command,) = [text for text in blocks("docs/setup.md", "bash") if text.startswith("mkdir")]
    command = command.replace("InternVL-Chat-V1-5", str(tmp_path / "made"))
    subprocess.run(command, shell=True, cwd=ROOT, check=True)
    assert AutoModelForImageTextToText.from_pretrained(tmp_path / "made", trust_remote_code=True).num_image_token == 64


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md"])
def test_commands_exist(page):
    makefile, text = (ROOT / "Makefile").read_text("utf-8"), (ROOT / page).read_text("utf-8")
    commands = re.findall(r"(?:`|^)make ([a-z-]+)((?: [A-Z]+=)*)", text, flags=re.MULTILINE)
    for target, variables in commands:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
        assert all(f"\n{name} ?=" in makefile for name in re.findall("[A-Z]+", variables)), variables
    for module, arguments in re.findall(r"python -m ([\w.]+)([^\n`]*)", text):
        if module.split(".")[0] in FOREIGN_MODULES:
            continue
        source = ROOT / module.replace(".", "/")
        source = source / "__main__.py" if source.is_dir() else source.with_suffix(".py")
        assert source.is_file(), module
        code = "".join(file.read_text("utf-8") for file in source.parent.glob("*.py"))  # some share their options
        for option in re.findall(r"--[a-z-]+", arguments):
            assert f'"{option}"' in code, (module, option)


def test_the_try_out_is_two_commands():
    for card in CARDS:
        assert blocks(card, "bash") == ["make chat\nmake test\n"]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_and_anchors_exist(document):
    for target in links(document):
        if target.startswith(("http:", "https:")):
            continue
        file, _, anchor = target.partition("#")
        path = ((ROOT / document).parent / file if file else ROOT / document).resolve()
        assert path.is_relative_to(ROOT), f"{target} leads out of the repository"
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path.relative_to(ROOT)), target


def test_every_page_is_two_clicks_away():
    assert "docs/README.md" in links("README.md")
    listed = {link.partition("#")[0] for link in links("docs/README.md")}
    for page in PAGES[len(CARDS) :]:
        assert Path(page).name in listed | {"README.md"}, f"docs/README.md has no line for {page}"


def test_the_card_is_a_card():
    """It is short, and its front matter is what the Hub reads."""
    assert (ROOT / "README.md").stat().st_size <= 12_000
    front = yaml.safe_load(TEXT["README.md"].split("---\n")[1])
    assert front["license"] == "apache-2.0"
    assert front["library_name"] == "transformers"
    assert front["pipeline_tag"] == "image-text-to-text"
    assert front["language"] == ["multilingual"]
    assert "custom_code" in front["tags"]
    assert re.search(r"!\[.+\]\(docs/architecture.png\)", TEXT["README.md"])


def test_quick_start_is_short():
    lines = [line for line in blocks("README.md", "python")[0].splitlines() if line.strip()]
    assert len(lines) <= 15


def without_comments(code):
    """Return Python code without what each language says in its own words."""
    tokens = tokenize.generate_tokens(io.StringIO(code).readline)
    return [token.string for token in tokens if token.type not in (tokenize.COMMENT, tokenize.NL)]


def test_both_cards_have_the_same_code():
    english, chinese = (blocks(card) for card in CARDS)
    assert [kind for kind, _ in english] == [kind for kind, _ in chinese]
    for (kind, ours), (_, theirs) in zip(english, chinese, strict=True):
        if kind == "python":
            assert without_comments(ours) == without_comments(theirs)
        else:
            assert ours == theirs


def test_both_cards_have_the_same_sections_and_figures():
    """Each section has the same numbers, in any order."""

    def numbers(card):
        text = re.sub(r"\]\([^)]*\)", "]", prose(card).split("---\n")[-1] if card == "README.md" else prose(card))
        sections = re.split(r"^#+ ", text, flags=re.MULTILINE)
        return [Counter(re.findall(r"\d+(?:[.,]\d+)*", section)) for section in sections]

    english, chinese = map(numbers, CARDS)
    assert len(english) == len(chinese)
    for ours, theirs in zip(english, chinese, strict=True):
        assert ours == theirs


def test_both_cards_have_the_same_links():
    english, chinese = (Counter(links(card)) for card in CARDS)
    assert english - chinese == Counter(["README_zh.md"])
    assert chinese - english == Counter(["README.md"])


def test_every_file_has_a_row():
    text = TEXT["docs/architecture.md"]
    table = text[text.index("## File map") : text.index("## Beside two other codebases")]
    for file in [*ROOT.glob("*.py"), ROOT / "chat_template.jinja"]:
        assert f"`{file.name}`" in table, f"the file map of docs/architecture.md has no row for {file.name}"


def test_comparison_has_the_rows_that_its_command_prints():
    command = [sys.executable, "docs/compare.py", ".", "tests/clients,tests/conftest.py"]
    printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    assert all(len(row.split("|")) == 5 for row in printed)
    for row in printed:
        assert f"\n| {row.split('|')[1].strip()} |" in TEXT["docs/architecture.md"]


def files_entered(call):
    """Return the package's files whose functions a call enters."""
    names, entered = {file.name for file in ROOT.glob("*.py")}, set()

    def see(frame, event, _):
        name = Path(frame.f_code.co_filename).name
        if event == "call" and name in names:
            entered.add(name)

    sys.setprofile(see)
    try:
        result = call()
    finally:
        sys.setprofile(None)
    return entered, result


def test_walks_are_as_drawn(saved_folder):
    """An image and a question pass at most 8 files each, those of the drawings; the page names what is beside."""
    text = TEXT["docs/architecture.md"]
    drawings = [re.findall(r"\w+\.py", block) for block in blocks("docs/architecture.md", "text")]
    named = text[text.index("Beside them") : text.index("The template of the prompt")]
    beside = set(re.findall(r"`(\w+\.py)`", named))
    processor = AutoProcessor.from_pretrained(saved_folder, trust_remote_code=True)
    model = AutoModelForImageTextToText.from_pretrained(saved_folder, trust_remote_code=True, dtype=torch.float32)
    messages = [{"role": "user", "content": "Hello"}]

    def image():
        tiles = processor.image_processor(str(ROOT / "examples" / "shapes.png"))["pixel_values"]
        input_ids = torch.full((1, len(tiles) * model.num_image_token), model.config.image_token_id)
        return model.embed_inputs(input_ids, tiles)

    def question():
        inputs = processor.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
        )
        return model.generate(**inputs, max_new_tokens=2)

    for drawn, call in zip(drawings, (image, question), strict=True):
        assert len(drawn) <= 8
        assert len(set(drawn)) == len(drawn), "a file is entered twice"
        entered, _ = files_entered(call)
        assert set(drawn) <= entered, f"drawn in docs/architecture.md, not entered: {set(drawn) - entered}"
        unnamed = entered - set(drawn) - beside
        assert not unnamed, f"docs/architecture.md does not name them beside the walks: {unnamed}"
