"""The growing cache holds what Transformers' dynamic cache holds, and copies it less often."""

import copy
import gc
import weakref

import pytest
import torch
from internvl_chat.cache_internvl import SPARE_TOKENS, GrowingCache, GrowingLayer, stretching_limit
from internvl_chat.configuration_internlm2 import InternLM2Config
from internvl_chat.modeling_internlm2 import InternLM2ForCausalLM
from transformers import DynamicCache, Phi3Config, Qwen2Config
from transformers.cache_utils import DynamicLayer


def states(seq, batch=2, seed=0):
    return torch.randn(2, batch, 3, seq, 4, generator=torch.Generator().manual_seed(seed + seq))


TWO_LAYERS = Phi3Config(num_hidden_layers=2, pad_token_id=0)


@pytest.fixture(autouse=True)
def no_grad():
    """As in `generate`; with autograd, the layer is Transformers' own."""
    with torch.no_grad():
        yield


def pair(*lengths, batch=2):
    """Return a growing and an ordinary cache of two layers, given the same tokens piece by piece."""
    caches = GrowingCache(TWO_LAYERS), DynamicCache()
    for index, length in enumerate(lengths):
        for cache in caches:
            append(cache, length, batch, seed=index)
    return caches


def append(cache, length, batch=2, seed=99):
    return [cache.update(*states(length, batch, seed + 1000 * layer), layer) for layer in (0, 1)]


def assert_same(growing, ordinary):
    assert growing.get_seq_length() == ordinary.get_seq_length()
    for one, other in zip(growing.layers, ordinary.layers, strict=True):
        assert isinstance(one, GrowingLayer)
        assert not isinstance(other, GrowingLayer)
        assert torch.equal(one.keys, other.keys)
        assert torch.equal(one.values, other.values)


@pytest.mark.parametrize("lengths", [(1,), (5, 1, 1), (5, 1, SPARE_TOKENS + 7, 1), (2, *[100] * 6)])
def test_every_update_returns_all_tokens(lengths):
    growing, ordinary = pair(*lengths[:-1])
    for ours, theirs in zip(append(growing, lengths[-1]), append(ordinary, lengths[-1]), strict=True):
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])
    assert_same(growing, ordinary)


def test_steps_stay_in_place_until_the_room_is_full():
    layer = pair(5)[0].layers[0]
    key_place, value_place = layer.keys.data_ptr(), layer.values.data_ptr()
    assert layer.keys.untyped_storage().nbytes() == (5 + SPARE_TOKENS) * 2 * 3 * 4 * 4  # float32
    for _ in range(SPARE_TOKENS):
        layer.update(*states(1))
    assert (layer.keys.data_ptr(), layer.values.data_ptr()) == (key_place, value_place)
    layer.update(*states(1))
    assert layer.get_seq_length() == SPARE_TOKENS + 6
    assert layer.keys.data_ptr() != key_place


@pytest.mark.parametrize(
    "change",
    [
        lambda cache: cache.crop(-3),
        lambda cache: cache.crop(-8),
        lambda cache: cache.reorder_cache(torch.tensor([1, 1])),
        lambda cache: (cache.crop(-3), cache.reorder_cache(torch.tensor([1, 0]))),
        lambda cache: (cache.reorder_cache(torch.tensor([1, 0])), cache.crop(-3)),
        lambda cache: [layer.offload() for layer in cache.layers],
    ],
)
def test_changes_between_updates(change):
    growing, ordinary = pair(5, 1, 2)
    for cache in (growing, ordinary):
        change(cache)
        append(cache, 1)
        append(cache, 4)
    assert_same(growing, ordinary)


@pytest.mark.parametrize(
    ("change", "batch"),
    [
        (lambda cache: cache.batch_repeat_interleave(2), 4),
        (lambda cache: cache.batch_select_indices(torch.tensor([1])), 1),
    ],
)
def test_changes_of_the_batch(change, batch):
    growing, ordinary = pair(5, 1)
    for cache in (growing, ordinary):
        change(cache)
        append(cache, 1, batch)
        append(cache, 1, batch)
    assert_same(growing, ordinary)


def test_a_cut_cache_uses_its_room_again():
    growing, _ = pair(5, 1, 2)
    layer = growing.layers[0]
    place = layer.keys.data_ptr()
    growing.crop(-3)
    append(growing, 3)
    assert layer.keys.data_ptr() == place


def rooms_of(cache):
    return [[room.data_ptr() for room in layer._buffers] for layer in cache.layers]


def configured_cache():
    return GrowingCache(TWO_LAYERS)


def test_all_layers_get_their_rooms_with_the_first():
    growing = configured_cache()
    growing.update(*states(5), 0)
    rooms = rooms_of(growing)
    assert all(rooms)
    assert growing.get_seq_length(1) == 0
    growing.update(*states(5, seed=1), 1)
    assert rooms_of(growing) == rooms
    for layer, seed in zip(growing.layers, (0, 1), strict=True):
        assert torch.equal(layer.keys, states(5, seed=seed)[0])


def test_on_other_devices_each_layer_waits_for_its_own_tokens():
    """The next layer may be on another GPU."""
    growing = configured_cache()
    growing.update(*states(5).to("meta"), 0)
    assert growing.layers[0]._buffers
    assert not growing.layers[1]._buffers


@pytest.mark.parametrize("other", [states(5).double(), states(5, batch=1), states(SPARE_TOKENS + 6)])
def test_a_layer_unlike_the_first_makes_its_own_room(other):
    growing = configured_cache()
    growing.update(*states(5), 0)
    keys, values = growing.update(*other, 1)
    assert torch.equal(keys, other[0])
    assert torch.equal(values, other[1])


@pytest.mark.parametrize("with_grad", [True, False])
def test_its_memory_goes_with_it(with_grad):
    """Layers that know each other would wait for Python's garbage collector, on a GPU too."""
    growing = configured_cache()
    with torch.set_grad_enabled(with_grad):
        growing.update(*states(5), 0)
    layer = weakref.ref(growing.layers[1])
    gc.disable()
    try:
        del growing
        assert layer() is None
    finally:
        gc.enable()


def test_reset_forgets():
    growing, _ = pair(5, 1)
    growing.layers[0].reset()
    fresh = GrowingLayer()
    if growing.get_seq_length() == 0:  # Transformers before 5.10 fills it with zeros and keeps its length
        for layer in (growing.layers[0], fresh):
            layer.update(*states(4))
            layer.update(*states(1))
        assert torch.equal(growing.layers[0].keys, fresh.keys)
    else:
        assert not growing.layers[0].keys.any()


def test_copies_go_their_own_ways():
    """A prefix that was read once, then copied for each question, is the usual way to share it."""
    prefix, _ = pair(5, 1)
    before = prefix.layers[0].keys.clone()
    questions = [copy.deepcopy(prefix) for _ in range(2)]
    for seed, cache in enumerate(questions):
        append(cache, 1, seed=seed)
    keys = [cache.layers[0].keys for cache in questions]
    assert torch.equal(keys[0][:, :, :6], keys[1][:, :, :6])
    assert not torch.equal(keys[0], keys[1])
    assert torch.equal(prefix.layers[0].keys, before)


@torch.enable_grad()
def test_gradients_flow_through_the_cache():
    gradients = []
    for layer in (GrowingLayer(), DynamicLayer()):
        pieces = [states(length).requires_grad_() for length in (5, 1, 1)]
        for piece in pieces:
            keys, values = layer.update(*piece)
            keys.square().sum().backward(retain_graph=True)
        (keys * values).sum().backward()
        gradients.append([piece.grad for piece in pieces])
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.equal(ours, theirs)


def test_what_inference_mode_read_goes_on_outside():
    with torch.inference_mode():
        growing, ordinary = pair(5, 1)
    for cache in (growing, ordinary):
        append(cache, 1)
    assert_same(growing, ordinary)


def test_a_step_compiles_in_one_piece():
    growing, ordinary = pair(5, 1)

    def step(keys, values):
        return [growing.update(keys, values, layer)[0].sum() for layer in (0, 1)]

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="eager")
    for seed in (0, 1):
        compiled(*states(1, seed=seed))
        for layer in (0, 1):
            ordinary.update(*states(1, seed=seed), layer)
    assert_same(growing, ordinary)


# Who gets one.


def test_windows_stay_windows():
    config = Qwen2Config(
        num_hidden_layers=2,
        use_sliding_window=True,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
    )
    sliding, full = GrowingCache(config).layers
    assert sliding.is_sliding
    assert isinstance(full, GrowingLayer)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = InternLM2Config(
        vocab_size=50,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        initializer_range=0.2,
    )
    return InternLM2ForCausalLM(config).eval()


def generated(model, **options):
    return model.generate(
        torch.arange(3, 9)[None],
        max_new_tokens=3,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        return_dict_in_generate=True,
        **options,
    )


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}])
def test_generate_makes_one_by_default(model, options):
    output = generated(model, **options)
    assert all(type(layer) is GrowingLayer for layer in output.past_key_values.layers)
    without = generated(model, **{**options, "use_cache": False})
    assert without.past_key_values is None
    assert torch.equal(output.sequences, without.sequences)


def test_generate_respects_what_the_caller_wants(model):
    own = DynamicCache()
    assert generated(model, past_key_values=own).past_key_values is own
    assert all(type(layer) is DynamicLayer for layer in own.layers)
    static = generated(model, cache_implementation="static", disable_compile=True).past_key_values
    assert static.is_compileable


def test_assisted_decoding_cuts_it(model):
    """Wrong guesses are read, found wrong, and cut off again."""
    torch.manual_seed(1)
    assistant = InternLM2ForCausalLM(model.config).eval()
    found = generated(model, assistant_model=assistant)
    assert torch.equal(found.sequences, generated(model).sequences)


def test_forward_makes_one_by_default(model):
    layers = model(torch.arange(3, 9)[None]).past_key_values.layers
    assert all(type(layer) is GrowingLayer for layer in layers)


def test_how_long_a_text_may_be_for_its_cache_to_be_shared():
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    phi3 = Phi3Config(
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        original_max_position_embeddings=16,
        rope_scaling={"type": "longrope", **factors},
    )
    assert stretching_limit(phi3) == 16, "longer texts have other factors, well before the longest possible one"
    dynamic = InternLM2Config(max_position_embeddings=48, rope_scaling={"type": "dynamic", "factor": 2.0})
    assert stretching_limit(dynamic) == 48
    assert stretching_limit(InternLM2Config(rope_scaling={"type": "linear", "factor": 2.0})) is None
    assert stretching_limit(Qwen2Config()) is None
