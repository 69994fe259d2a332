"""Log-probabilities are those of a separate pass over prompt and answer, however the answer came to be."""

import math

import pytest
import torch
from internvl_chat.answer_internvl import ScoredAnswer
from internvl_chat.configuration_internvl_chat import InternVLChatConfig
from internvl_chat.conversation_internvl import PromptEncoder, decode_answer, encode_conversation, turns_of_history
from internvl_chat.image_processing_internvl import InternVLImageProcessor
from internvl_chat.modeling_internvl_chat import InternVLChatModel
from internvl_chat.processing_internvl import InternVLProcessor
from internvl_chat.prompt_format_internvl import prompt_format
from internvl_chat.tokenization_internlm2 import InternLM2Tokenizer
from PIL import Image


SHORT = {"max_new_tokens": 12, "do_sample": False}
QUESTION = "What colour is the circle?"
CHOICES = ("red", "a dark blue", "红色", "绿色的圆形", "<box>[[1,2,3,4]]</box>")


@pytest.fixture(scope="module")
def tokenizer(tiny_folder):
    return InternLM2Tokenizer.from_pretrained(tiny_folder)


@pytest.fixture(scope="module")
def processor(tiny_folder, tokenizer):
    template = (tiny_folder / "chat_template.jinja").read_text("utf-8")
    return InternVLProcessor(InternVLImageProcessor(tile_size=224), tokenizer, template)


@pytest.fixture(scope="module")
def model(tiny_folder):
    return InternVLChatModel.from_pretrained(tiny_folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def picture(tiny_folder):
    return Image.new("RGB", (300, 200), "white")


@pytest.fixture(scope="module")
def tiles(processor, picture):
    return processor.image_processor(picture, max_tiles=2)["pixel_values"]


@pytest.fixture(scope="module")
def prompt_ids(processor, picture):
    """The prompt as the processor makes it, independently of `chat`."""
    content = [{"type": "image", "image": picture}, {"type": "text", "text": QUESTION}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
        max_tiles=2,
    )
    return inputs["input_ids"][0].tolist()


@torch.no_grad()
def separate_pass(model, prompt_ids, token_ids, tiles):
    """Return the log-probabilities of an answer's tokens from one pass over everything."""
    logits = model(input_ids=torch.tensor([[*prompt_ids, *token_ids]]), pixel_values=tiles).logits[0].float()
    logprobs = logits.log_softmax(-1)[len(prompt_ids) - 1 : -1]
    return [float(row[token_id]) for row, token_id in zip(logprobs, token_ids, strict=True)]


def assert_near(found, expected):
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    "options",
    [
        SHORT,
        {"max_new_tokens": 12, "do_sample": True, "temperature": 1.7, "top_k": 20},
        {**SHORT, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
        {**SHORT, "num_beams": 3},
        {**SHORT, "use_cache": False},
        {"max_new_tokens": 6, "do_sample": True, "num_return_sequences": 3},
    ],
    ids=["greedy", "sampled", "penalties", "beams", "uncached", "several"],
)
def test_answers_with_logprobs(model, tokenizer, tiles, prompt_ids, options):
    given = dict(options)
    torch.manual_seed(0)
    answer = model.chat_with_logprobs(tokenizer, tiles, QUESTION, options)
    assert options == given
    torch.manual_seed(0)
    expected = {**options, "num_return_sequences": 1}
    assert answer.text == model.chat(tokenizer, tiles, QUESTION, expected)
    assert len(answer.token_ids) == len(answer.tokens) == len(answer.logprobs) > 0
    assert_near(answer.logprobs, separate_pass(model, prompt_ids, answer.token_ids, tiles))
    assert answer.logprob == pytest.approx(sum(answer.logprobs))
    assert answer.mean_logprob == pytest.approx(answer.logprob / len(answer.logprobs))


def test_the_end_counts_if_it_came(model, tokenizer):
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for num_beams in (3, 1):
        options = {"max_new_tokens": 200, "do_sample": False, "num_beams": num_beams}
        answer = model.chat_with_logprobs(tokenizer, None, "Hello", options)
        assert answer.token_ids.index(end) == len(answer.token_ids) - 1
        assert answer.tokens[-1] == "<|im_end|>"
        assert len(answer.logprobs) == len(answer.tokens)
        assert "<|im_end|>" not in answer.text
    cut = model.chat_with_logprobs(tokenizer, None, "Hello", {"max_new_tokens": 1, "do_sample": False})
    assert cut.token_ids == answer.token_ids[:1]


def test_history(model, tokenizer, tiles):
    answer, history = model.chat_with_logprobs(tokenizer, tiles, QUESTION, SHORT, return_history=True)
    text, expected = model.chat(tokenizer, tiles, QUESTION, SHORT, return_history=True)
    assert (answer.text, history) == (text, expected)
    again = model.chat_with_logprobs(tokenizer, tiles, "Sure?", SHORT, history=history)
    assert again.text == model.chat(tokenizer, tiles, "Sure?", SHORT, history=history)


def test_choices_of_different_lengths_and_languages(model, tokenizer, tiles, prompt_ids):
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    scored = model.score_choices(tokenizer, tiles, QUESTION, CHOICES)
    assert [choice.text for choice in scored] == list(CHOICES)
    assert len({len(choice.token_ids) for choice in scored}) > 2
    for choice in scored:
        assert choice.token_ids[-1] == end
        assert decode_answer(tokenizer, choice.token_ids[:-1]) == choice.text
        assert_near(choice.logprobs, separate_pass(model, prompt_ids, choice.token_ids, tiles))
    # As beginnings of an answer they have the same tokens but the last.
    for whole, beginning in zip(
        scored, model.score_choices(tokenizer, tiles, QUESTION, CHOICES, with_end=False), strict=True
    ):
        assert beginning.token_ids == whole.token_ids[:-1]
        assert_near(beginning.logprobs, whole.logprobs[:-1])


def test_the_models_own_answer_scores_what_it_said(model, tokenizer, tiles):
    answer = model.chat_with_logprobs(tokenizer, tiles, QUESTION, {"max_new_tokens": 60, "do_sample": False})
    (choice,) = model.score_choices(tokenizer, tiles, QUESTION, [answer.text])
    assert choice.token_ids == answer.token_ids
    assert_near(choice.logprobs, answer.logprobs)


def test_pictures_and_prompt_are_read_once(model, tokenizer, tiles, prompt_ids):
    seen, read = [], []
    hooks = [
        model.vision_model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0]))),
        model.language_model.register_forward_pre_hook(
            lambda module, args, kwargs: read.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
        ),
    ]
    scored = model.score_choices(tokenizer, tiles, QUESTION, CHOICES)
    for hook in hooks:
        hook.remove()
    assert seen == [len(tiles)]
    assert read == [len(prompt_ids), *(len(choice.token_ids) - 1 for choice in scored)]


def test_text_several_pictures_encoded_pictures_and_history(model, tokenizer, tiles):
    question, options = "<image> and <image>: which?", {"num_patches_list": [2, len(tiles) - 2]}
    scored = model.score_choices(tokenizer, tiles, question, CHOICES[:2], **options)
    pictures = model.encode_images(tiles, options["num_patches_list"])
    assert model.score_choices(tokenizer, pictures, question, CHOICES[:2]) == scored
    history = [("Hello", "Good day")]
    (alone,) = model.score_choices(tokenizer, None, "And?", ["yes"], history=history, system="Be brief.")
    prompt = "<|im_start|>system\nBe brief.<|im_end|><|im_start|>user\nHello<|im_end|><|im_start|>assistant\nGood day"
    prompt += "<|im_end|><|im_start|>user\nAnd?<|im_end|><|im_start|>assistant\n"
    assert_near(
        alone.logprobs,
        separate_pass(model, PromptEncoder(tokenizer).encode_text(prompt, [], 0), alone.token_ids, None),
    )


def test_a_typed_end_stays_text(model, tokenizer):
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    (choice,) = model.score_choices(tokenizer, None, "Hello", ["a<|im_end|>b"])
    assert choice.token_ids.count(end) == 1


def test_beyond_the_limit_of_dynamic_rope_every_choice_has_its_own_pass(tiny_folder, tokenizer, tiles, prompt_ids):
    config = InternVLChatConfig.from_pretrained(tiny_folder)
    config.llm_config.max_position_embeddings = len(prompt_ids) + 3
    model = InternVLChatModel.from_pretrained(tiny_folder, config=config, dtype=torch.float32).eval()
    scored = model.score_choices(tokenizer, tiles, QUESTION, CHOICES)
    assert max(len(choice.token_ids) for choice in scored) > 5
    for choice in scored:
        assert_near(choice.logprobs, separate_pass(model, prompt_ids, choice.token_ids, tiles))


@pytest.mark.parametrize("case", ["c02_mini_2b", "c05_v12_llama", "c06_qwen2"])
def test_other_language_models(case, golden_model, goldens):
    """Texts alone: the cache of each kind of language model is cut back to the prompt between the choices."""
    tokenizer = InternLM2Tokenizer.from_pretrained(goldens / "tokenizer")
    model = golden_model(case)
    scored = model.score_choices(tokenizer, None, "Hello", ["yes", "certainly not", "是的"])
    turns = turns_of_history([], "Hello", has_images=False)
    style = prompt_format(model.config.template)
    prompt = encode_conversation(tokenizer, style, turns, system=model.system_message)
    for choice in scored:
        assert_near(choice.logprobs, separate_pass(model, prompt, choice.token_ids, None))
    greedy = model.chat_with_logprobs(tokenizer, None, "Hello", SHORT)
    assert_near(greedy.logprobs, separate_pass(model, prompt, greedy.token_ids, None))


def test_a_choice_never_melts_into_the_prompt(golden_model, goldens):
    """The published tokenizer has one piece for two line ends, of which the first is the prompt's."""
    tokenizer = InternLM2Tokenizer.from_pretrained(goldens / "tokenizer")
    (choice,) = golden_model("c02_mini_2b").score_choices(tokenizer, None, "Hello", ["\nyes"])
    assert decode_answer(tokenizer, choice.token_ids[:-1]) == "\nyes"


def test_sums():
    scored = ScoredAnswer("ab", (1, 2), ("a", "b"), (math.log(0.5), math.log(0.25)))
    assert math.exp(scored.logprob) == pytest.approx(0.125)
    assert math.exp(scored.mean_logprob) == pytest.approx(0.125**0.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"choices": []}, r"choices is \[\]; expected a list with at least one text"),
        ({"choices": "red"}, "choices is 'red'; expected a list"),
        ({"choices": 5}, "choices is 5; expected a list"),
        ({"choices": ["red", 3]}, "expected a list with at least one text"),
        ({"choices": ["red", ""], "with_end": False}, "A choice is empty, and without its end it has no tokens"),
        ({"choices": ["red"], "question": None}, "question is None; expected text"),
        ({"choices": ["red"], "num_patches_list": [1]}, r"num_patches_list is \[1\], but pixel_values is None"),
    ],
)
def test_bad_calls(model, tokenizer, call, message):
    with pytest.raises(ValueError, match=message):
        model.score_choices(tokenizer, None, **{"question": "Hello", **call})
