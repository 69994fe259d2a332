"""Everything that strangers send goes through every public door, and comes to one of three ends.

Right, refused with one of the package's sentences, or refused by Python's own type error at the call.
"""

import pytest
import torch
from internvl_chat.image_processing_internvl import InternVLImageProcessor
from internvl_chat.processing_internvl import InternVLProcessor
from internvl_chat.video_internvl import frames_of
from strange import anything, check, history, image, messages, seeded, settings, tensor, text


SHORT = {"max_new_tokens": 1, "do_sample": False}
ANSWER = {"role": "assistant", "content": "A"}


@pytest.fixture(scope="module")
def processor(tokenizer):
    return InternVLProcessor(InternVLImageProcessor(tile_size=112, max_tiles=2, media_policy="inline"), tokenizer)


@pytest.fixture(scope="module")
def model(golden_model):
    return golden_model("c01_v15_26b")


def doors_of_the_processor(processor, rng):
    """Yield calls with what a stranger sends."""
    ours, shown = processor.image_processor, image(rng)
    yield lambda: ours(shown, **settings(rng))
    yield lambda: ours.plan(shown, **settings(rng))
    yield lambda: ours.fetch_images(shown)
    yield lambda: processor.count_image_tokens(shown, **settings(rng))
    yield lambda: frames_of(shown, "video", rng.choice([None, 2, -1, True]), ours.media_reader())
    yield lambda: processor(
        rng.choice([shown, [shown], None]), rng.choice(["<image>", anything(rng)]), **settings(rng)
    )
    yield lambda: processor(text="<video>", videos=[shown], **settings(rng))
    sent = messages(rng)
    yield lambda: processor.apply_chat_template(sent)
    yield lambda: processor.apply_chat_template(sent, tokenize=True, return_dict=True, **settings(rng))
    yield lambda: processor.data_collator()([{"messages": [*sent, ANSWER] if isinstance(sent, list) else sent}])
    yield lambda: processor.post_process_grounding(text(rng), rng.choice([shown, (9, 9)]))
    yield lambda: processor.post_process_image_text_to_text(rng.choice([tensor(rng), [rng.randrange(-5, 99999)]]))


def doors_of_the_model(model, tokenizer, rng):
    one, other = tensor(rng), tensor(rng)
    counts = rng.choice([None, None, [1], [2], [True], 3, [0], [-1, 2], "1", [[1]]])
    question, past = anything(rng), history(rng)
    yield lambda: model.chat(tokenizer, one, question, SHORT, history=past, num_patches_list=counts)
    yield lambda: model.chat(tokenizer, None, question, rng.choice([SHORT, 3, None]) or SHORT, history=past)
    yield lambda: model.batch_chat(tokenizer, one, rng.choice([question, [question]]), SHORT, num_patches_list=counts)
    yield lambda: list(model.chat_stream(tokenizer, one, question, SHORT, num_patches_list=counts))
    yield lambda: model.score_choices(tokenizer, one, question, [anything(rng)], num_patches_list=counts)
    yield lambda: model(input_ids=one, pixel_values=other)
    yield lambda: model(one)
    yield lambda: model(input_ids=[[1, 5, 7]], visual_features=one, attention_mask=other)
    yield lambda: model.generate(one, pixel_values=other, **SHORT)
    yield lambda: model.generate([1, 5, 7], attention_mask=one, **SHORT)
    yield lambda: model.encode_images(one, counts)
    session = model.start_chat(tokenizer)
    yield lambda: session.show(one, counts)
    yield lambda: session.chat(question, generation_config=SHORT)
    yield lambda: session.rewind(rng.choice([0, 1, -1, 9]))
    yield lambda: session.retry(question, SHORT)
    session.close()


def knock(doors, name, seed):
    """Go through all doors; return how many calls were accepted, and how many there were."""
    accepted = calls = 0
    for number, call in enumerate(doors):
        try:
            accepted += check(call)
        except AssertionError as error:
            raise AssertionError(f"{name}, seed {seed}, door {number}: {error}") from error
        calls += 1
    return accepted, calls


def of_the_processor(processor, seeds):
    results = [knock(doors_of_the_processor(processor, seeded("p", seed)), "processor", seed) for seed in seeds]
    assert 0 < sum(accepted for accepted, _ in results) < sum(calls for _, calls in results)


def of_the_model(model, tokenizer, seeds):
    with torch.inference_mode():
        results = [knock(doors_of_the_model(model, tokenizer, seeded("m", seed)), "model", seed) for seed in seeds]
    assert 0 < sum(accepted for accepted, _ in results) < sum(calls for _, calls in results)


def test_doors_of_the_processor(processor):
    of_the_processor(processor, range(60))


def test_doors_of_the_model(model, tokenizer):
    of_the_model(model, tokenizer, range(20))


@pytest.mark.slow
@pytest.mark.parametrize("run", range(10))
def test_many_doors(processor, model, tokenizer, run):
    of_the_processor(processor, range(1000 + 300 * run, 1300 + 300 * run))
    of_the_model(model, tokenizer, range(1000 + 40 * run, 1040 + 40 * run))
