"""Loading from the Hub, through `huggingface_hub` and over HTTP: what arrives, and what it costs.

The Hub is `hub_server.py`. Where it is and where downloads go is read once, when the library is imported, so all
loading happens in processes of their own; the tests of a module-wide `online` share one, and its cache.
"""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import HubServer
from internvl_chat.modeling_internvl_chat import InternVLChatModel
from internvl_chat.tokenization_internlm2 import InternLM2Tokenizer


ROOT = Path(__file__).resolve().parent.parent
CODE = sorted(path.name for path in ROOT.glob("*.py"))
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
# What Transformers looks for in the root even of a subfolder's load; of the last one 4.57 asks whether it exists.
LOOKED_FOR_IN_THE_ROOT = {"adapter_config.json", "custom_generate/generate.py", "processor_config.json"}
LARGE = "model.safetensors"

# Loading does not depend on the tests of each release; these take long enough to run once.
pytestmark = pytest.mark.newest
# Repositories: everything in one folder, the root of this project, weights whose code is elsewhere, and that code.
WHOLE, NESTED, WEIGHTS, CODE_ONLY = "user/whole", "user/nested", "user/weights", "user/code"

# Runs what it is sent, and answers with what that leaves in `answer`, or with the error.
CLIENT = """
import json, sys
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
from transformers.models.auto.image_processing_auto import AutoImageProcessor

def load(auto_class, source, **options):
    return auto_class.from_pretrained(source, trust_remote_code=True, **options)

def load_all(source, **options):
    classes = (AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, AutoImageProcessor, AutoConfig)
    return [load(one, source, **options) for one in classes]

def chat(model, tokenizer):
    return model.chat(tokenizer, None, "Hello", {"max_new_tokens": 12})

def package(thing):  # the folder of its code: name of the repository and commit
    return type(thing).__module__.split(".")[-4:-1]

def written(thing):  # what a file deep in the package of its code says, see `with_changed_code`
    sibling = type(thing).__module__.rsplit(".", 1)[0] + ".tiling_internvl"
    return getattr(sys.modules[sibling], "WRITTEN", "before")

def persistently(work):  # a cut connection: some releases of huggingface_hub go on by themselves, others report it
    try:
        return work()
    except Exception:
        return work()

names = globals()
for line in sys.stdin:
    names["answer"] = None
    try:
        exec(json.loads(line), names)
        result = {"answer": names["answer"]}
    except Exception as error:
        result = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(result), flush=True)
"""


class Client:
    """A process that loads from a Hub into a cache of its own."""

    def __init__(self, endpoint: str, home: Path, offline: bool = False) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environment |= {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": str(int(offline))}
        environment |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        home.mkdir(parents=True, exist_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLIENT],
            cwd=home,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(home / "stderr.txt").open("w"),
            text=True,
        )

    def start(self, code: str) -> None:
        self.process.stdin.write(json.dumps(code) + "\n")
        self.process.stdin.flush()

    def __call__(self, code: str, fails: bool = False):
        self.start(code)
        result = json.loads(self.process.stdout.readline())
        assert ("error" in result) == fails, result
        return result["error" if fails else "answer"]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def copied(target, *files):
    target.mkdir()
    for file in files:
        shutil.copy(file, target)
    return target


def with_changed_code(folder, target, written):
    shutil.copytree(folder, target)
    with (target / "tiling_internvl.py").open("a") as file:
        file.write(f'WRITTEN = "{written}"\n')
    return target


def pointing_elsewhere(folder):
    """Let every `auto_map` of a folder name a repository of code."""
    for path in folder.glob("*.json"):
        content = json.loads(path.read_text("utf-8"))
        if "auto_map" in content:
            content["auto_map"] = {name: elsewhere(reference) for name, reference in content["auto_map"].items()}
            path.write_text(json.dumps(content), "utf-8")
    return folder


def elsewhere(reference):
    if isinstance(reference, list):
        return [one and elsewhere(one) for one in reference]
    return f"{CODE_ONLY}--{reference}"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The contents of the repositories."""
    folder, code, tiny = (
        tmp_path_factory.mktemp("repositories"),
        list(ROOT.glob("*.py")),
        list((ROOT / "tiny").glob("*")),
    )
    template = ROOT / "chat_template.jinja"
    whole = copied(folder / "whole", *tiny, *code, template)
    nested = copied(folder / "nested", *code, *ROOT.glob("*.json"), template)
    copied(nested / "tiny", *tiny)
    (nested / "processor_config.json").write_text(
        json.dumps({"processor_class": "InternVLProcessor", "patch_size": 7})
    )
    weights = pointing_elsewhere(copied(folder / "weights", *tiny))
    return {
        WHOLE: whole,
        "changed": with_changed_code(whole, folder / "changed", "after"),
        NESTED: nested,
        WEIGHTS: weights,
        CODE_ONLY: copied(folder / "code", *code),
    }


@pytest.fixture
def hub(server):
    server.forget()
    return server


@pytest.fixture(scope="module")
def server(folders):
    server = HubServer()
    server.commit(WHOLE, folders["changed"], "next", "v2")
    for repo in (WHOLE, NESTED, WEIGHTS, CODE_ONLY):
        server.commit(repo, folders[repo])
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def online(server, home):
    client = Client(server.endpoint, home)
    yield client
    client.kill()


@pytest.fixture
def clients(server):
    """Make more processes, which end with the test."""
    made = []

    def make(home, **options):
        made.append(Client(server.endpoint, home, **options))
        return made[-1]

    yield make
    for client in made:
        client.kill()


@pytest.fixture(scope="module")
def greeting():
    """What the embedded checkpoint answers, without any loader."""
    model = InternVLChatModel.from_pretrained(ROOT / "tiny")
    return model.chat(InternLM2Tokenizer.from_pretrained(ROOT / "tiny"), None, "Hello", {"max_new_tokens": 12})


def closure(name):
    """Return the files that a file of the package needs, itself included."""
    needed, waiting = set(), [name]
    while waiting:
        needed.add(current := waiting.pop())
        tree = ast.walk(ast.parse((ROOT / current).read_text("utf-8")))
        waiting += {f"{node.module}.py" for node in tree if isinstance(node, ast.ImportFrom) and node.level} - needed
    return needed


def code_asked(hub, repo, *methods):
    return {path: count for path, count in hub.asked(repo, *methods).items() if path in CODE}


# A repository that holds all.


def test_each_class_fetches_the_code_it_needs_once(hub, online, greeting):
    online(f"load(AutoConfig, '{WHOLE}')")
    assert set(code_asked(hub, WHOLE)) == closure("configuration_internvl_chat.py")

    online(f"processor = load(AutoProcessor, '{WHOLE}')")
    assert not {path for path in code_asked(hub, WHOLE) if path.startswith("modeling")}
    online(f"model = load(AutoModelForImageTextToText, '{WHOLE}')")
    online(f"tokenizer = load(AutoTokenizer, '{WHOLE}')")
    assert online("answer = chat(model, tokenizer)") == greeting
    assert online("answer = chat(model, processor.tokenizer)") == greeting

    assert code_asked(hub, WHOLE, "GET") == dict.fromkeys(CODE, 1)
    assert {path: hub.sent[WHOLE, path] for path in CODE} == {path: (ROOT / path).stat().st_size for path in CODE}
    # Weights come once as well, from their second address.
    assert {path: hub.sent[WHOLE, path] for path in SHARDS} == {
        path: (ROOT / "tiny" / path).stat().st_size for path in SHARDS
    }


@pytest.mark.parametrize("auto_class", ["AutoModel", "AutoModelForImageTextToText", "AutoProcessor", "AutoTokenizer"])
def test_a_load_from_the_cache_fetches_nothing_and_asks_at_most_once_for_a_file(hub, online, auto_class):
    online(f"load_all('{WHOLE}')")
    hub.forget()
    online(f"load({auto_class}, '{WHOLE}')")
    assert not sum(hub.sent.values())
    assert len(code_asked(hub, WHOLE)) <= 3  # the files that `auto_map` names; what they import is there
    assert set(code_asked(hub, WHOLE).values()) <= {1}


def test_revisions_bring_their_own_code(server, online):
    commits = server.repositories[WHOLE]
    for revision, written in (("main", "before"), ("next", "after"), ("v2", "after"), (commits["main"].id, "before")):
        found = online(
            f"things = load_all('{WHOLE}', revision='{revision}'); answer = [(package(x), written(x)) for x in things]"
        )
        assert found == [[["user", "whole", commits[revision].id], written]] * 5
    found = online(f"answer = [written(one) for one in load_all('{WHOLE}', code_revision='v2')]")
    assert found == ["after"] * 5
    online(f"processor = load(AutoProcessor, '{WHOLE}', code_revision='v2')")
    parts = "(processor, processor.tokenizer, processor.image_processor)"
    assert online(f"answer = [written(one) for one in {parts}]") == ["after"] * 3


def test_a_branch_whose_code_changed_runs_the_new_code(server, online, folders):
    before = server.commit("user/moving", folders[WHOLE])
    both = "answer = [written(load(one, 'user/moving')) for one in (AutoModel, AutoProcessor)]"
    assert online(both) == ["before", "before"]
    server.commit("user/moving", folders["changed"])
    assert online(both) == ["after", "after"]
    assert online(f"answer = written(load(AutoModel, 'user/moving', revision='{before}'))") == "before"


@pytest.mark.parametrize(
    ("repo", "options", "message"),
    [
        ("user/nobody", "", "user/nobody is not a local folder and is not a valid model identifier"),
        (WHOLE, "revision='v9'", "v9 is not a valid git identifier"),
        (WHOLE, "code_revision='v9'", "v9 is not a valid git identifier"),
    ],
)
def test_what_is_not_there_is_named(online, repo, options, message):
    assert message in online(f"load(AutoModel, '{repo}', {options})", fails=True)


# Code in the root, data in a folder below it, as in this project.


def test_everything_but_code_comes_from_the_subfolder(hub, online, greeting):
    online(f"model, processor, tokenizer, images, config = load_all('{NESTED}', subfolder='tiny')")
    asked = {path for path in hub.asked(NESTED) if not path.startswith("/api/")}
    assert {path for path in asked if not path.startswith("tiny/")} - set(CODE) <= LOOKED_FOR_IN_THE_ROOT
    ids = "model.config.image_token_id, config.image_token_id, processor.image_token_id"
    assert set(online(f"answer = [{ids}]")) == {833}
    assert online("answer = model.generation_config.eos_token_id") == [829, 2]  # the root's are 92542 and 2
    assert online("answer = tokenizer.convert_tokens_to_ids(['<|im_end|>', '</s>'])") == [829, 2]
    assert online("answer = processor.patch_size") == 14  # the root's is 7
    assert online("answer = [images.tile_size, processor.image_processor.tile_size]") == [224, 224]
    assert online("answer = processor.chat_template == tokenizer.chat_template")
    assert online("answer = [chat(model, tokenizer), chat(model, processor.tokenizer)]") == [greeting, greeting]


def test_a_downloaded_subfolder_is_read_alike(hub, online, greeting, tmp_path, folders):
    online(f"model, _, tokenizer, *_ = load_all({str(folders[NESTED])!r}, subfolder='tiny')")
    assert online("answer = model.generation_config.eos_token_id") == [829, 2]
    assert online("answer = chat(model, tokenizer)") == greeting
    assert not hub.requests


# Weights whose code is in another repository.


def test_code_of_another_repository(server, online, greeting, clients, tmp_path):
    found = online(f"things = load_all('{WEIGHTS}'); answer = [package(one) for one in things]")
    assert found == [["user", "code", server.repositories[CODE_ONLY]["main"].id]] * 5
    assert online("answer = chat(things[0], things[2])") == greeting

    # Saved, the code is beside the weights, and every class finds it there: without the Hub, and with an empty cache.
    saved = tmp_path / "saved"
    online(f"[one.save_pretrained({str(saved)!r}) for one in things[:2]]")
    assert online("answer = things[0].config.auto_map['AutoModel']").startswith(CODE_ONLY)
    auto_map = json.loads((saved / "config.json").read_text("utf-8"))["auto_map"]
    assert {name: reference for name, reference in auto_map.items() if name.startswith("AutoModel")} == dict.fromkeys(
        ("AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForMultimodalLM"),
        "modeling_internvl_chat.InternVLChatModel",
    )
    alone = clients(tmp_path / "alone", offline=True)
    alone(f"things = [*load_all({str(saved)!r}), load(AutoModel, {str(saved)!r})]")
    assert alone("answer = {type(one).__module__.split('.')[1] for one in things}.pop()") == "saved"
    assert alone("answer = [chat(things[0], things[2]), chat(things[-1], things[1].tokenizer)]") == [greeting] * 2


def test_a_config_saved_alone_goes_on_naming_the_repository_of_the_code(online, tmp_path):
    online(f"load(AutoConfig, '{WEIGHTS}').save_pretrained({str(tmp_path)!r})")
    auto_map = json.loads((tmp_path / "config.json").read_text("utf-8"))["auto_map"]
    assert auto_map["AutoConfig"] == "configuration_internvl_chat.InternVLChatConfig"
    assert auto_map["AutoModel"] == "user/code--modeling_internvl_chat.InternVLChatModel"


# Offline, and when something goes wrong.


def test_offline_after_one_load(hub, online, home, clients, greeting):
    online(f"load_all('{WHOLE}'); load_all('{NESTED}', subfolder='tiny'); load_all('{WEIGHTS}')")
    hub.forget()
    offline = clients(home, offline=True)
    for source in (f"'{WHOLE}'", f"'{NESTED}', subfolder='tiny'", f"'{WEIGHTS}'"):
        assert offline(f"model, _, tokenizer, *_ = load_all({source}); answer = chat(model, tokenizer)") == greeting
    assert not hub.requests


def test_a_missing_shard_is_named(server, online, folders, tmp_path):
    folder = shutil.copytree(folders[WHOLE], tmp_path / "broken")
    (folder / SHARDS[1]).unlink()
    server.commit("user/broken", folder)
    assert SHARDS[1] in online("load(AutoModel, 'user/broken')", fails=True)


def test_a_download_that_is_cut_goes_on(server, hub, online, greeting, folders, tmp_path):
    server.commit("user/cut", folders[WHOLE])
    hub.faults[SHARDS[0]] = (1_000_000, False)
    online("model = persistently(lambda: load(AutoModel, 'user/cut'))")
    assert online("answer = chat(model, load(AutoTokenizer, 'user/cut'))") == greeting
    assert not hub.faults

    # What is larger than the library's piece of 10 MiB goes on where it was.
    tmp_path.joinpath(LARGE).write_bytes(bytes(15 << 20))
    server.commit("user/large", tmp_path)
    hub.faults[LARGE] = (12 << 20, False)
    online("from huggingface_hub import hf_hub_download")
    online(f"persistently(lambda: hf_hub_download('user/large', '{LARGE}'))")
    assert hub.ranges == {LARGE: f"bytes={10 << 20}-"}


@pytest.mark.slow
def test_a_killed_download_leaves_nothing_half_done(hub, clients, greeting, tmp_path):
    hub.faults[SHARDS[0]] = (1_000_000, True)
    first = clients(tmp_path)
    first.start(f"load(AutoModel, '{WHOLE}')")
    assert hub.hanging.wait(120)
    first.kill()
    hub.released.set()

    before = dict(hub.sent)
    second = clients(tmp_path)
    assert second(f"answer = chat(load(AutoModel, '{WHOLE}'), load(AutoTokenizer, '{WHOLE}'))") == greeting
    again = {path for (repo, path), sent in hub.sent.items() if before.get((repo, path)) not in (None, sent)}
    assert again - set(SHARDS) == set()  # whatever was whole is not fetched again
    assert hub.sent[WHOLE, SHARDS[0]] <= (ROOT / "tiny" / SHARDS[0]).stat().st_size + 1_000_000
