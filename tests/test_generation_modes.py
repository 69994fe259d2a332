"""Every way to generate says what greedy decoding says, or refuses in one sentence; on weights that see.

Random weights hide these faults: an answer that ignores the image looks like any other.
"""

import copy
from pathlib import Path

import pytest
import torch
from internvl_chat.compat_internvl import PREFILL_CHUNKS_IGNORE_CACHE
from transformers import (
    AutoModelForImageTextToText,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    generation,
    pipeline,
)


ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
GREEDY = {"max_new_tokens": 10, "do_sample": False}
IMAGES = {"text": [], "image": ["shapes.png"], "two images": ["shapes.png", "sign.png"]}
QUESTIONS = {"text": "Hello", "image": "Describe the picture.", "two images": "Describe the picture."}

OFFLOADED = "CUDA" if not torch.cuda.is_available() else None
# Options, and the sentence that refuses them, None if they say what greedy decoding says.
MODES = {
    "no cache": ({"use_cache": False}, None),
    "one sequence of several": ({"do_sample": True, "top_k": 1, "num_return_sequences": 2}, None),
    "static cache": ({"cache_implementation": "static", "disable_compile": True}, None),
    "offloaded cache": ({"cache_implementation": "offloaded"}, OFFLOADED),
    "quantized cache": ({"cache_implementation": "quantized"}, "quanto|HQQ|hqq"),
    "prompt lookup": ({"prompt_lookup_num_tokens": 3}, None),
    "copy assists": (lambda model: {"assistant_model": copy.deepcopy(model)}, None),
    "smaller model assists": (lambda model: {"assistant_model": smaller(model)}, None),
    "text-only draft": (lambda model: {"assistant_model": copy.deepcopy(model.language_model)}, None),
    "chunked prefill": ({"prefill_chunk_size": 64}, None),
    "stop string": (lambda model: {"stop_strings": ["never said"]}, None),
    "custom processor": (lambda model: {"logits_processor": LogitsProcessorList([Unchanged()])}, None),
    "custom criterion": (lambda model: {"stopping_criteria": StoppingCriteriaList([Never()])}, None),
}
ASSISTED = ("prompt lookup", "copy assists", "smaller model assists", "text-only draft")


class Unchanged(LogitsProcessor):
    def __call__(self, input_ids, scores):
        return scores


class Never(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        return torch.zeros(len(input_ids), dtype=torch.bool)


@pytest.fixture(scope="module")
def model():
    return AutoModelForImageTextToText.from_pretrained(
        ROOT, subfolder="tiny", trust_remote_code=True, dtype=torch.float32
    )


def smaller(model):
    """Return a random model with the same vocabulary and another width, which encodes the images by itself."""
    torch.manual_seed(0)
    config = copy.deepcopy(model.config)
    config.llm_config.hidden_size //= 2
    config.llm_config.num_hidden_layers = config.vision_config.num_hidden_layers = 1
    return type(model)(config).eval()


def options_of(mode, model):
    options, refusal = MODES[mode]
    return {**GREEDY, **(options(model) if callable(options) else options)}, refusal


def messages(kind):
    items = [{"type": "image", "path": str(EXAMPLES / name)} for name in IMAGES[kind]]
    return [{"role": "user", "content": [*items, {"type": "text", "text": QUESTIONS[kind]}]}]


def tiles_of(processor, kind):
    if not IMAGES[kind]:
        return None, None
    tiles = processor.image_processor([str(EXAMPLES / name) for name in IMAGES[kind]])
    return tiles["pixel_values"], tiles["num_patches"].tolist()


def generate(model, processor, kind, options):
    inputs = processor.apply_chat_template(
        messages(kind), tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    extra = {"tokenizer": processor.tokenizer} if "stop_strings" in options else {}
    output = model.generate(**inputs, **options, **extra)
    return processor.post_process_image_text_to_text(output[:, inputs["input_ids"].shape[1] :])[0]


def chat(model, processor, kind, options):
    tiles, counts = tiles_of(processor, kind)
    question = "<image>\n" * len(IMAGES[kind]) + QUESTIONS[kind]
    return model.chat(processor.tokenizer, tiles, question, options, num_patches_list=counts)


def session(model, processor, kind, options):
    """Ask for the second time, when the cache holds the first turn, images included."""
    tiles, counts = tiles_of(processor, kind)
    with model.start_chat(processor.tokenizer, tiles, GREEDY, counts) as conversation:
        first = "<image>\n" * len(IMAGES[kind]) + "What colour is the circle?"
        conversation.chat(first)
        return conversation.chat(QUESTIONS[kind], generation_config=options)


def pipe(model, processor, kind, options):
    answers = pipeline("image-text-to-text", model=model, processor=processor)(
        text=messages(kind), return_full_text=False, generate_kwargs=options
    )
    return answers[0]["generated_text"]


ROUTES = {"generate": generate, "chat": chat, "session": session, "pipeline": pipe}


@pytest.fixture(scope="module")
def greedy(model, processor):
    """What each route says by greedy decoding, once."""
    known = {}

    def say(route, kind):
        if (route, kind) not in known:
            known[route, kind] = ROUTES[route](model, processor, kind, GREEDY)
        return known[route, kind]

    return say


# On every release of the window an image and no image; two of them, and pipelines, on the pinned one.
PINNED = pytest.mark.newest


@pytest.mark.parametrize("kind", ["text", "image", pytest.param("two images", marks=PINNED)])
@pytest.mark.parametrize("route", ["generate", "chat", "session", pytest.param("pipeline", marks=PINNED)])
@pytest.mark.parametrize("mode", MODES)
def test_mode(model, processor, greedy, mode, route, kind):
    options, refusal = options_of(mode, model)
    if route == "pipeline" and mode == "stop string":
        options["tokenizer"] = processor.tokenizer
    if refusal is not None:
        with pytest.raises(Exception, match=refusal):
            ROUTES[route](model, processor, kind, options)
        return
    assert ROUTES[route](model, processor, kind, options) == greedy(route, kind)


def test_the_answers_depend_on_the_images(greedy):
    assert len({greedy("generate", kind) for kind in IMAGES}) == len(IMAGES)
    assert greedy("chat", "image") == greedy("generate", "image") == greedy("pipeline", "image")


@pytest.mark.parametrize("route", ["generate", "chat", "session"])
@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}])
def test_beams(model, processor, route, options):
    options = {**GREEDY, **options}
    expected = ROUTES[route](model, processor, "image", {**options, "use_cache": False})
    assert ROUTES[route](model, processor, "image", options) == expected


@pytest.mark.parametrize("route", ["generate", "chat", "session"])
def test_sampling(model, processor, route):
    answers = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        options = {"max_new_tokens": 10, "do_sample": True, "use_cache": use_cache}
        answers.append(ROUTES[route](model, processor, "image", options))
    assert answers[0] == answers[1]


@pytest.mark.parametrize("route", ["generate", "chat"])
@pytest.mark.parametrize("kind", IMAGES)
def test_guidance(model, processor, route, kind):
    """Against the last token of the prompt without anything before it, which is what Transformers compares with."""
    found = ROUTES[route](model, processor, kind, {**GREEDY, "guidance_scale": 1.5})
    inputs = processor.apply_chat_template(
        messages(kind), tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    ids, rest, said = inputs["input_ids"], {"pixel_values": inputs.get("pixel_values")}, []
    for _ in range(GREEDY["max_new_tokens"]):
        new = torch.tensor([said], dtype=torch.long)
        guided, plain = (
            model(input_ids=torch.cat([start, new], dim=1), **images).logits[:, -1].log_softmax(-1)
            for start, images in ((ids, rest), (ids[:, -1:], {}))
        )
        said.append(int((plain + 1.5 * (guided - plain)).argmax()))
        if said[-1] in model.generation_config.eos_token_id:
            break
    assert found == processor.post_process_image_text_to_text([said])[0]


@pytest.mark.parametrize("mode", MODES)
def test_batch(model, processor, greedy, mode):
    """Rows with an image, with two and with none, padded on the left."""
    options, refusal = options_of(mode, model)
    tiles, counts = zip(*(tiles_of(processor, kind) for kind in IMAGES), strict=True)
    pixel_values = torch.cat([part for part in tiles if part is not None])
    questions = ["<image>\n" * len(IMAGES[kind]) + QUESTIONS[kind] for kind in IMAGES]
    refusal = "batch_size = 1|batch size" if mode in ASSISTED else refusal
    if mode == "chunked prefill" and PREFILL_CHUNKS_IGNORE_CACHE:
        refusal = "prefill_chunk_size is given with padding or a cache that holds tokens"
    ask = lambda: model.batch_chat(processor.tokenizer, pixel_values, questions, options, [c or 0 for c in counts])  # noqa: E731
    if refusal is not None:
        with pytest.raises(Exception, match=refusal):
            ask()
        return
    assert ask() == [greedy("chat", kind) for kind in IMAGES]


@pytest.mark.parametrize("whole", [True, False])
def test_continuing_from_a_cache(model, processor, greedy, whole):
    """The cache holds a part of the prompt, which ends in the middle of the image."""
    inputs = dict(
        processor.apply_chat_template(
            messages("image"), tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
        )
    )
    ids = inputs["input_ids"]
    embeds = model.embed_inputs(ids, inputs["pixel_values"])
    image_tokens = (ids[0] == model.config.image_token_id).nonzero()[:, 0]
    for cut in (int(image_tokens[len(image_tokens) // 2]), int(image_tokens[-1]) + 2):
        with torch.no_grad():
            cache = model(inputs_embeds=embeds[:, :cut], use_cache=True).past_key_values
        given = dict(inputs)
        if not whole:  # the features of the new tokens alone
            features = model.get_image_features(given.pop("pixel_values")).flatten(0, 1)
            given["visual_features"] = features[int((image_tokens < cut).sum()) :]
        output = model.generate(**given, past_key_values=cache, **GREEDY)
        assert processor.post_process_image_text_to_text(output[:, ids.shape[1] :])[0] == greedy("generate", "image")


@pytest.mark.parametrize("mode", ASSISTED)
def test_guesses_behind_a_cache(model, processor, mode):
    """Transformers would read the whole prompt again, behind what the cache holds of it."""
    inputs = processor.apply_chat_template(
        messages("text"), tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    with torch.no_grad():
        cache = model(input_ids=inputs["input_ids"][:, :5], use_cache=True).past_key_values
    with pytest.raises(ValueError, match="is given with a cache that holds 5 tokens, but guesses are verified from"):
        model.generate(**inputs, past_key_values=cache, **options_of(mode, model)[0])


def test_continuous_batching(model, processor):
    if not hasattr(model, "generate_batch"):
        pytest.skip("this release of Transformers has no continuous batching")
    inputs = processor.apply_chat_template(
        messages("image"), tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    with pytest.raises(ValueError, match=r"inputs\[0\] has image tokens, but continuous batching passes no images"):
        model.generate_batch(inputs["input_ids"].tolist())


@pytest.mark.parametrize("part", ["model", "language_model"])
def test_continuous_batching_of_text(model, processor, part):
    """Where this release has it for CPUs, it says what greedy decoding says."""
    subject = model if part == "model" else model.language_model
    config = copy.deepcopy(model.generation_config)
    config.do_sample, config.max_new_tokens = False, 6
    # By default the cache takes most of the machine's memory; releases ask for the limit in different places.
    config.num_blocks, config.max_batch_tokens = 64, 256
    limits = {}
    if hasattr(generation, "ContinuousBatchingConfig"):
        limits["continuous_batching_config"] = generation.ContinuousBatchingConfig(num_blocks=64, max_batch_tokens=256)
    prompts = [processor.tokenizer(text).input_ids for text in ("Hello", "What is this?")]
    try:
        answers = subject.generate_batch(prompts, generation_config=config, **limits)
    except Exception as error:  # noqa: BLE001 (whatever this release lacks on this machine)
        pytest.skip(f"continuous batching does not run here: {error}")
    rows = {tuple(answer.prompt_ids): answer.generated_tokens for answer in answers.values()}  # in any order
    if len(rows) != len(prompts):
        pytest.skip("continuous batching does not run here: its thread ended without an answer")
    for ids in prompts:
        row = rows[tuple(ids)]
        expected = subject.generate(torch.tensor([ids]), generation_config=config)[0, len(ids) :].tolist()
        assert row in (expected, expected[:-1])  # some releases leave out the token that ends an answer
        assert row == expected or expected[-1] in config.eos_token_id
