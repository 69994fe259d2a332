"""Generation says what the official code says, from pictures, embeddings or ids, with each kind of cache or none."""

import pytest
import torch
from tiny_models import GREEDY, check_logits, prompt, tiles, tiny_model
from transformers import BatchFeature, DynamicCache


@pytest.fixture
def model():
    return tiny_model()


# Golden numbers.


def test_greedy_tokens_and_scores(case):
    model, tensors, record = case
    output = model.generate(
        tensors["gen.input_ids"],
        pixel_values=tensors["pixel_values"],
        max_new_tokens=32,
        do_sample=False,
        eos_token_id=record["eos_token_id"],
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    prompt_length = tensors["gen.input_ids"].shape[1]
    assert output.sequences[:, :prompt_length].tolist() == tensors["gen.input_ids"].tolist()
    assert output.sequences[:, prompt_length:].tolist() == tensors["gen.tokens"].tolist()
    check_logits(torch.stack(output.scores, 1), tensors, "gen.scores")


def test_greedy_tokens_from_embeddings_alone(case):
    model, tensors, record = case
    embeds = model.embed_inputs(tensors["gen.input_ids"], tensors["pixel_values"])
    tokens = model.generate(
        inputs_embeds=embeds, max_new_tokens=32, do_sample=False, eos_token_id=record["eos_token_id"], pad_token_id=0
    )
    assert tokens.tolist() == tensors["gen.tokens"].tolist()


def test_greedy_tokens_without_cache(case):
    model, tensors, record = case
    limit = model.config.llm_config.max_position_embeddings
    prompt_length = tensors["gen.input_ids"].shape[1]
    # Beyond the limit of dynamic RoPE, with and without a cache are two computations: see test_modeling_internlm2.py.
    count = min(32, limit - prompt_length)
    tokens = model.generate(
        tensors["gen.input_ids"],
        pixel_values=tensors["pixel_values"],
        use_cache=False,
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=record["eos_token_id"],
        pad_token_id=0,
    )
    assert tokens[:, prompt_length:].tolist() == tensors["gen.tokens"][:, :count].tolist()


@pytest.mark.filterwarnings("ignore:Passing .* with `inputs_embeds` and without `input_ids`:UserWarning")
@pytest.mark.parametrize(
    ("name", "option", "options"),
    [
        ("c01_v15_26b", "gen_rep", {"repetition_penalty": 1.3}),
        ("c01_v15_26b", "gen_beam3", {"num_beams": 3}),
        ("c01_v15_26b", "gen_min", {"min_new_tokens": 5}),
        ("c02_mini_2b", "gen_rep", {"repetition_penalty": 1.3}),
        ("c02_mini_2b", "gen_ngram", {"no_repeat_ngram_size": 1}),
        ("c02_mini_2b", "gen_beam3", {"num_beams": 3}),
        ("c02_mini_2b", "gen_maxlen20", {}),
    ],
)
def test_decoding_options(golden_case, golden_model, name, option, options):
    """From embeddings, as the official code generates: penalties see the answer alone."""
    tensors, record = golden_case(name)
    model = golden_model(name, attn_implementation="eager")
    expected = tensors[f"{option}.raw_sequences"][:, 1:]  # the first is a dummy
    assert record[option]["kwargs"] == options
    tokens = model.generate(
        inputs_embeds=model.embed_inputs(tensors["gen.input_ids"], tensors["pixel_values"]),
        max_new_tokens=expected.shape[1],
        do_sample=False,
        eos_token_id=record["eos_token_id"],
        pad_token_id=0,
        **options,
    )
    assert tokens.tolist() == expected.tolist()


def test_left_padded_batch_generates_as_each_row_alone(golden_case, golden_model):
    tensors, record = golden_case("c09_batch_chat")
    model = golden_model("c09_batch_chat", attn_implementation="eager")
    options = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": 92542, "pad_token_id": 0}
    input_ids, attention_mask = tensors["input_ids"], tensors["attention_mask"]
    pixel_values = tensors["pixel_values"]
    together = model.generate(input_ids, pixel_values=pixel_values, attention_mask=attention_mask, **options)
    assert together[:, input_ids.shape[1] :].tolist() == tensors["gen.tokens"].tolist()
    rows = zip(input_ids, attention_mask, (pixel_values[:3], pixel_values[3:]), record["rows_alone"], strict=True)
    for row, mask, row_tiles, alone in rows:
        ids = row[mask.bool()][None]
        assert ids.tolist() == [alone["input_ids"]]
        tokens = model.generate(ids, pixel_values=row_tiles, **options)
        assert tokens[0, ids.shape[1] :].tolist() == alone["generated_new_tokens"]


# Equalities.


def test_generation_keeps_no_graph_and_computes_the_last_logits_alone(model):
    seen = []
    model.vision_model.register_forward_hook(
        lambda module, args, output: seen.append(output.last_hidden_state.grad_fn is None)
    )
    model.language_model.output.register_forward_hook(
        lambda module, args, output: seen.append((output.shape[1], output.grad_fn is None))
    )
    model.generate(prompt(2), pixel_values=tiles(2), max_new_tokens=3, **GREEDY)
    assert seen == [True] + [(1, True)] * 3
    seen.clear()
    model.generate(inputs_embeds=model.embed_inputs(prompt(2), tiles(2)), max_new_tokens=2, **GREEDY)
    assert seen[1:] == [(1, True)] * 2
    seen.clear()
    handle = model.encode_images(tiles(2))
    assert seen == [True]
    assert not handle.features.requires_grad


def test_images_ride_along_until_the_prompt_is_read(model):
    """Exporters walk through all inputs of a step, and an image's features lead to the whole model."""
    seen = []
    model.register_forward_pre_hook(lambda _, args, kwargs: seen.append("prompt_features" in kwargs), with_kwargs=True)
    model.generate(prompt(2), pixel_values=tiles(2), max_new_tokens=3, **GREEDY)
    assert seen == [True, False, False]
    seen.clear()
    model.generate(prompt(2), pixel_values=tiles(2), max_new_tokens=3, use_cache=False, **GREEDY)
    assert seen == [True, True, True]


def test_sampling_several_sequences(model):
    torch.manual_seed(0)
    tokens = model.generate(
        prompt(1), pixel_values=tiles(1), do_sample=True, num_return_sequences=3, max_new_tokens=5, eos_token_id=None
    )
    assert tokens.shape == (3, prompt(1).shape[1] + 5)
    assert len({tuple(row) for row in tokens.tolist()}) > 1


@pytest.mark.parametrize("model_type", ["internlm2", "llama"])
def test_static_cache(model_type):
    model = tiny_model(model_type)
    options = {"max_new_tokens": 8, **GREEDY}
    static = {"cache_implementation": "static", "disable_compile": True, **options}
    pictures = {"pixel_values": tiles(2)}
    assert torch.equal(
        model.generate(prompt(2), **pictures, **static), model.generate(prompt(2), **pictures, **options)
    )
    embeds = model.embed_inputs(prompt(2), tiles(2))
    assert torch.equal(model.generate(inputs_embeds=embeds, **static), model.generate(inputs_embeds=embeds, **options))


@torch.no_grad()
def test_prefilled_cache_and_a_new_picture(model):
    """The first picture is in the cache; the second is new and must be seen."""
    first, both = prompt(1), torch.cat([prompt(1), prompt(1)], dim=1)
    options = {"max_new_tokens": 3, "output_logits": True, "return_dict_in_generate": True, **GREEDY}
    for second in (torch.zeros_like(tiles(1)), torch.ones_like(tiles(1))):
        cache = DynamicCache()
        model(input_ids=first, pixel_values=tiles(1), past_key_values=cache, use_cache=True)
        pixel_values = torch.cat([tiles(1), second])
        continued = model.generate(both, pixel_values=pixel_values, past_key_values=cache, **options)
        whole = model.generate(both, pixel_values=pixel_values, **options)
        torch.testing.assert_close(continued.logits[0], whole.logits[0], atol=1e-5, rtol=1e-4)
        assert torch.equal(continued.sequences, whole.sequences)


def test_inputs_is_another_name_of_input_ids(model):
    options = {"max_new_tokens": 2, **GREEDY}
    named = model.generate(inputs=prompt(1), pixel_values=tiles(1), **options)
    assert torch.equal(named, model.generate(prompt(1), pixel_values=tiles(1), **options))


def test_inputs_that_were_not_unpacked(model):
    inputs = BatchFeature({"input_ids": prompt(1), "pixel_values": tiles(1)})
    with pytest.raises(TypeError, match=r"BatchFeature with input_ids, pixel_values.*generate\(\*\*inputs\)"):
        model.generate(inputs)
    with pytest.raises(TypeError, match="expected a tensor"):
        model.generate(inputs=inputs)


def test_generate_with_pictures_and_no_ids(model):
    with pytest.raises(ValueError, match="Images need input_ids with image tokens"):
        model.generate(pixel_values=tiles(1))
    with pytest.raises(ValueError, match="has 0 image tokens .*but the images have 4"):  # they are in it already
        model.generate(inputs_embeds=model.embed_inputs(prompt(1), tiles(1)), pixel_values=tiles(1))
