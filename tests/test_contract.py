"""No input without effect: each input of the model, alone or beside another, changes the result or is refused."""

import itertools

import pytest
import torch
from internvl_chat.generation_internvl import is_further_step
from internvl_chat.image_features_internvl import PromptFeatures
from tiny_models import IMAGE_TOKEN, TILE_TOKENS, prompt, tiles, tiny_config, tiny_model
from transformers import DynamicCache


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def inputs(model):
    """Two values for each input of `forward` that says what is read or learned; they fit one tile in the text."""
    generator = torch.Generator().manual_seed(0)
    ids, length = prompt(1), prompt(1).shape[1]
    other_ids = ids.clone()
    other_ids[ids != IMAGE_TOKEN] = (other_ids[ids != IMAGE_TOKEN] + 3) % 50

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    mask = torch.ones_like(ids)
    mask[:, :1] = 0
    with torch.no_grad():
        features = model.get_image_features(tiles(1))
        embeds = model.get_input_embeddings()(ids)
        caches = [model(input_ids=torch.tensor([[5, 6, token]]), use_cache=True).past_key_values for token in (7, 8)]
    labels = torch.randint(0, 90, (2, 1, length), generator=generator)
    positions = torch.arange(length)[None]
    return {
        "pixel_values": (tiles(1), tiles(1) + 1),
        "input_ids": (ids, other_ids),
        "attention_mask": (torch.ones_like(ids), mask),
        "position_ids": (positions, positions * 2),
        "image_flags": (torch.tensor([1]), torch.tensor([0])),
        "past_key_values": caches,
        "labels": (labels[0], labels[1]),
        "inputs_embeds": (embeds, embeds + random(*embeds.shape) * (ids != IMAGE_TOKEN)[..., None]),
        "visual_features": (features, features + random(*features.shape)),
        "loss_weight": (torch.ones(1, length), torch.linspace(0, 1, length)[None]),
        "logits_to_keep": (1, 2),
        "skip_logits": (True, False),
        "shift_labels": (labels[0], labels[1]),
    }


def result(model, **given):
    """Return what a call says, as one tensor, or None if it is refused in a sentence."""
    given = {name: copy_of(value) for name, value in given.items()}
    try:
        with torch.no_grad():
            output = model(**given)
    except (ValueError, TypeError):
        return None
    parts = [output.loss, output.logits]
    return torch.cat([part.flatten() for part in parts if part is not None])


def copy_of(value):
    if not isinstance(value, DynamicCache):
        return value
    copied = DynamicCache()
    for index, layer in enumerate(value.layers):
        copied.update(layer.keys.clone(), layer.values.clone(), index)
    return copied


PAIRS = list(
    itertools.permutations(
        (
            "pixel_values",
            "input_ids",
            "attention_mask",
            "position_ids",
            "image_flags",
            "past_key_values",
            "labels",
            "inputs_embeds",
            "visual_features",
            "loss_weight",
            "logits_to_keep",
            "skip_logits",
            "shift_labels",
        ),
        2,
    )
)
# What one input needs beside it to be complete, so that a pair is not refused for what it lacks.
NEEDS = {
    "pixel_values": {"input_ids"},
    "image_flags": {"input_ids", "pixel_values"},
    "visual_features": {"input_ids"},
    "attention_mask": {"input_ids", "pixel_values"},
    "position_ids": {"input_ids", "pixel_values"},
    "labels": {"input_ids", "pixel_values"},
    "shift_labels": {"input_ids", "pixel_values"},
    "loss_weight": {"input_ids", "pixel_values", "labels"},
    "logits_to_keep": {"input_ids", "pixel_values"},
    "skip_logits": {"input_ids", "pixel_values", "labels"},
    "past_key_values": {"input_ids", "pixel_values"},
    "input_ids": {"pixel_values"},
    "inputs_embeds": set(),
}
# Pairs in which one input decides nothing by its meaning: flags of 0 leave no image to be changed, ids beside
# embeddings and images only say where the images go.
DECIDE_NOTHING = {("input_ids", "inputs_embeds")}


@pytest.mark.parametrize(("changed", "beside"), PAIRS)
def test_pairs_of_inputs(model, inputs, changed, beside):
    names = {changed, beside} | NEEDS[changed] | NEEDS[beside]
    if "inputs_embeds" in names and {changed, beside} != {"input_ids", "inputs_embeds"}:
        names -= {"input_ids"} if "input_ids" not in (changed, beside) else set()
    if "visual_features" in names and "pixel_values" not in (changed, beside):
        names -= {"pixel_values"}
    if "attention_mask" in names and "past_key_values" in names:
        return  # of another length then, see below
    given = {name: inputs[name][0] for name in names}
    first = result(model, **given)
    second = result(model, **{**given, changed: inputs[changed][1]})
    if (changed, beside) in DECIDE_NOTHING:
        return
    if first is None and second is None:
        return  # refused, in a sentence
    assert first is None or second is None or first.shape != second.shape or not torch.equal(first, second)


@pytest.mark.parametrize("name", ["pixel_value", "attention_masks", "past_key_value", "image_sizes", "num_patches"])
def test_names_that_nothing_reads(model, name):
    with pytest.raises(TypeError, match=rf"forward\(\) got {name}, which nothing reads"):
        model(input_ids=torch.tensor([[1, 2]]), **{name: torch.ones(1)})
    with pytest.raises(TypeError, match="which nothing reads"):
        model.language_model(input_ids=torch.tensor([[1, 2]]), **{name: torch.ones(1)})


def test_a_cache_under_a_name_that_nobody_knows(model):
    with pytest.raises(TypeError, match="past holds a DynamicCache, but no argument of that name takes a cache"):
        model(input_ids=torch.tensor([[1, 2]]), past=DynamicCache())


def test_both_names_of_the_cache(model):
    ids, cache = torch.tensor([[5, 6]]), DynamicCache()
    with torch.no_grad():
        one = model(input_ids=ids, past_key_values=cache)
        assert one.past_key_values is one.cache is cache
        more = model(input_ids=ids, cache=cache).logits
        again = model(input_ids=torch.tensor([[5, 6, 5, 6]])).logits[:, 2:]
    torch.testing.assert_close(more, again)
    with pytest.raises(TypeError, match="past_key_values and cache hold different caches"):
        model(input_ids=ids, past_key_values=DynamicCache(), cache=DynamicCache())


def test_ids_by_position(model):
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, model(input_ids=ids).logits)
    with pytest.raises(ValueError, match="pixel_values are integers beside input_ids"):
        model(ids, ids)


def test_images_in_embeddings(model):
    """By the ids where they are given, else where the embedding is the image token's, as in Transformers' model."""
    ids = prompt(1)
    with torch.no_grad():
        embeds = model.get_input_embeddings()(ids)
        expected = model(input_ids=ids, pixel_values=tiles(1)).logits
        assert torch.equal(model(inputs_embeds=embeds, pixel_values=tiles(1)).logits, expected)
        assert torch.equal(model(input_ids=ids, inputs_embeds=embeds, pixel_values=tiles(1)).logits, expected)
        # Soft prompts have other embeddings in the same places.
        soft = model(input_ids=ids, inputs_embeds=embeds * 0.5, pixel_values=tiles(1)).logits
    assert not torch.equal(soft, expected)
    with pytest.raises(ValueError, match="has 0 image tokens"):
        model(inputs_embeds=embeds * 0.5, pixel_values=tiles(1))
    with pytest.raises(ValueError, match=r"input_ids are \(1, .*expected the same \(batch, seq\)"):
        model(input_ids=ids[:, :-1], inputs_embeds=embeds, pixel_values=tiles(1))


@pytest.mark.parametrize("with_images", [True, False])
def test_generate_with_ids_and_embeddings(model, with_images):
    """The embeddings are read, the ids are returned."""
    ids = prompt(1) if with_images else torch.tensor([[5, 6, 7]])
    images = {"pixel_values": tiles(1)} if with_images else {}
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    embeds = model.get_input_embeddings()(ids).detach()
    plain = model.generate(ids, **images, **options)
    assert torch.equal(model.generate(ids, inputs_embeds=embeds, **images, **options), plain)
    soft = embeds + torch.randn(embeds.shape, generator=torch.Generator().manual_seed(1))
    found = model.generate(ids, inputs_embeds=soft, **images, **options)
    with torch.no_grad():
        whole = model.embed_inputs(ids, **images, inputs_embeds=soft)
    assert torch.equal(found[:, ids.shape[1] :], model.generate(inputs_embeds=whole, **options))
    assert torch.equal(found[:, : ids.shape[1]], ids)


@pytest.mark.parametrize("name", ["prompt_lookup_num_tokens", "assistant_model"])
def test_guesses_need_ids(model, name):
    embeds = model.get_input_embeddings()(torch.tensor([[5, 6, 7]]))
    with pytest.raises(ValueError, match=f"{name} needs the prompt's input_ids, but only inputs_embeds are given"):
        model.generate(inputs_embeds=embeds, **{name: 3})


def test_shifted_labels(model):
    """Shards of a sequence bring their labels shifted; the next token of the last one is another shard's."""
    ids = torch.tensor([[5, 6, 7, 8]])
    shifted = torch.tensor([[6, 7, 8, -100]])
    with torch.no_grad():
        expected = model(input_ids=ids, labels=ids).loss
        assert torch.equal(model(input_ids=ids, shift_labels=shifted).loss, expected)
        assert torch.equal(model(input_ids=ids, labels=ids, shift_labels=shifted).loss, expected)
        assert torch.equal(model(input_ids=ids, shift_labels=shifted, skip_logits=True).loss, expected)
    with pytest.raises(ValueError, match="labels and shift_labels contradict each other"):
        model(input_ids=ids, labels=ids, shift_labels=shifted + 1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"loss_weight": torch.ones(1, 2)}, "loss_weight is given, but there are no labels"),
        ({"skip_logits": True}, "skip_logits is set, but there are no labels"),
        (
            {"labels": torch.ones(1, 2, dtype=torch.long), "logits_to_keep": 1},
            "labels need the logits of all positions",
        ),
        ({"image_flags": torch.tensor([1])}, "image_flags are given without pixel_values"),
    ],
)
def test_arguments_that_contradict(model, given, message):
    with pytest.raises(ValueError, match=message):
        model(input_ids=torch.tensor([[1, 2]]), **given)


def test_features_of_a_prompt_by_slots():
    """Wherever a step begins and ends, its tokens get the features of their slots."""
    features, index = torch.arange(1.0, 4.0)[:, None], torch.tensor([[-1, 0, 1, -1, 2]])
    given = PromptFeatures(features, index, model=None)
    words = torch.zeros(1, 8, 1)
    assert given.embed(words, 0).flatten().tolist() == [0, 1, 2, 0, 3, 0, 0, 0]
    assert given.embed(words[:, :2], 2).flatten().tolist() == [2, 0]
    assert given.embed(words[:, :4], torch.tensor(3)).flatten().tolist() == [0, 3, 0, 0]
    assert given.embed(words[:, :1], 5) is not None
    assert given.embed(words[:, :3].expand(2, -1, -1), 1).flatten().tolist() == [1, 2, 0] * 2


def test_prompt_tuning_shifts_the_prompt():
    features, index = torch.arange(1.0, 4.0)[:, None], torch.tensor([[-1, 0, 1], [2, -1, -1]])
    given = PromptFeatures(features, index, model=None)
    is_image = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 0, 1, 0, 0, 0]], dtype=torch.bool)
    # Two virtual tokens in front; the last image token of the first row is one that the model said itself.
    assert given.embed_found(torch.zeros(2, 6, 1), is_image).flatten().tolist() == [0, 0, 0, 1, 2, 0, 0, 0, 3, 0, 0, 0]
    with pytest.raises(ValueError, match="inputs_embeds have fewer image tokens than the prompt"):
        given.embed_found(torch.zeros(2, 6, 1), torch.zeros(2, 6, dtype=torch.bool))


def test_steps_after_the_first(model):
    cache = DynamicCache()
    assert not is_further_step(torch.tensor([[1, 2]]), None)
    assert not is_further_step(torch.tensor([[1, 2]]), cache)
    assert is_further_step(torch.tensor([[1]]), cache)
    with torch.no_grad():
        model(input_ids=torch.tensor([[1, 2]]), past_key_values=cache)
    assert is_further_step(torch.tensor([[1, 2]]), cache)


def test_image_features_as_an_output(model):
    features = model.get_image_features(tiles(2))
    output = model.get_image_features(tiles(2), return_dict=True)
    assert torch.equal(output.pooler_output, features)
    config = tiny_config().vision_config
    patches = (config.image_size // config.patch_size) ** 2
    assert output.last_hidden_state.shape == (2, 1 + patches, config.hidden_size)
    assert features.shape[1] == TILE_TOKENS
