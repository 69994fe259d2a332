"""InternLM2 against plain restatements of its parts, against itself by other routes, and against recorded answers."""

import math

import pytest
import torch
from accelerate import cpu_offload
from internvl_chat import modeling_internlm2
from internvl_chat.configuration_internlm2 import InternLM2Config
from internvl_chat.modeling_internlm2 import (
    InternLM2Attention,
    InternLM2ForCausalLM,
    InternLM2MLP,
    InternLM2Model,
    InternLM2RMSNorm,
    InternLM2RotaryEmbedding,
    apply_rotary_pos_emb,
    eager_attention_forward,
    rotate_half,
    single_token_sdpa_forward,
)
from tiny_models import ROUNDING
from torch.testing import assert_close
from transformers import DynamicCache, StaticCache


LOGITS = {"atol": 2e-4 * ROUNDING, "rtol": 0.0}
CLOSE = {"atol": 2e-5, "rtol": 1e-5}
GREEDY = {"do_sample": False, "pad_token_id": 0}


def tiny_config(**kwargs):
    """Six query heads of four in two groups."""
    sizes = {
        "vocab_size": 50,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
        "rope_theta": 10_000,
    }
    return InternLM2Config(**{**sizes, **kwargs})


def tiny_model(backend="sdpa", **kwargs):
    torch.manual_seed(0)
    config = tiny_config(**kwargs)
    config._attn_implementation = backend
    return InternLM2ForCausalLM(config).eval()


def token_ids(batch, seq):
    return torch.randint(3, 50, (batch, seq), generator=torch.Generator().manual_seed(seq))


@pytest.fixture
def model():
    return tiny_model()


# The parts.


def rms_norm(states, weight, eps):
    return states / (states.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def test_norm_is_a_plain_rms_norm():
    norm = InternLM2RMSNorm(8, eps=1e-3)
    torch.nn.init.normal_(norm.weight)
    states = torch.randn(2, 3, 8)
    assert_close(norm(states), rms_norm(states, norm.weight, 1e-3))


def test_norm_works_in_float32_and_rounds_before_the_weight():
    norm = InternLM2RMSNorm(8).bfloat16()
    torch.nn.init.normal_(norm.weight)
    states = torch.randn(4, 8).bfloat16()
    rounded = rms_norm(states.float(), 1.0, 1e-6).bfloat16()
    assert torch.equal(norm(states), norm.weight * rounded)


def test_feed_forward_gates_with_w1():
    mlp = InternLM2MLP(tiny_config())
    states = torch.randn(2, 3, 24)
    w1, w2, w3 = mlp.w1.weight, mlp.w2.weight, mlp.w3.weight
    gate = states @ w1.T
    assert_close(mlp(states), (gate * gate.sigmoid() * (states @ w3.T)) @ w2.T)


def read_by(block, states):
    """Return how many tokens the block's first layer got in each call, and what came out."""
    lengths = []
    handle = block.w1.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[-2]))
    output = block(states)
    handle.remove()
    return lengths, output


def test_feed_forward_takes_long_texts_in_parts(monkeypatch):
    monkeypatch.setattr(modeling_internlm2, "MLP_TOKENS_CPU", 2)
    block, states = InternLM2MLP(tiny_config()), torch.randn(2, 5, 24)
    lengths, whole = read_by(block, states)
    assert lengths == [5], "autograd keeps everything"
    with torch.no_grad():
        lengths, parts = read_by(block, states)
        assert lengths == [2, 2, 2, 2, 2]
        assert_close(parts, whole, **CLOSE)
        assert read_by(block, states[:1, :2])[0] == [2]
        block.w1 = torch.nn.Sequential(block.w1)  # quantized layers have no `weight` either
        assert read_by(block, states)[0] == [2, 2, 2, 2, 2]
        cpu_offload(block, execution_device="cpu")
        lengths, offloaded = read_by(block, states)
    assert lengths == [5], "weights come once"
    assert_close(offloaded, whole, **CLOSE)


def test_rotate_half():
    assert rotate_half(torch.tensor([1.0, 2.0, 3.0, 4.0])).tolist() == [-3.0, -4.0, 1.0, 2.0]


def rotated(vector, position, base):
    """Rotate pairs (i, i + half) of one head by position / base^(2i / dim), in plain floats."""
    half = len(vector) // 2
    result = [0.0] * len(vector)
    for i in range(half):
        angle = position / base ** (2 * i / len(vector))
        cos, sin = math.cos(angle), math.sin(angle)
        result[i] = vector[i] * cos - vector[i + half] * sin
        result[i + half] = vector[i + half] * cos + vector[i] * sin
    return result


def test_rotary_embedding_rotates_pairs():
    rope = InternLM2RotaryEmbedding(tiny_config())
    states = torch.randn(1, 2, 5, 4)  # (batch, heads, seq, head_dim)
    result = apply_rotary_pos_emb(states, *rope(states, torch.arange(5)[None]))
    expected = [[rotated(states[0, head, p].tolist(), p, 10_000) for p in range(5)] for head in range(2)]
    assert_close(result[0], torch.tensor(expected))


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_attention_layer_step_by_step(backend):
    """Head by head: rows of `wqkv` come by key/value head, each with its three queries, its key and its value."""
    torch.manual_seed(0)
    config = tiny_config(bias=True)
    config._attn_implementation = backend
    attention = InternLM2Attention(config, layer_idx=0)
    states = torch.randn(1, 5, 24)
    rope = InternLM2RotaryEmbedding(config)
    future = torch.ones(5, 5).triu(1).bool()
    # Without a mask SDPA is causal by itself, eager is not: Transformers always makes it one.
    mask = torch.zeros(1, 1, 5, 5).masked_fill(future, -torch.inf) if backend == "eager" else None
    output, _ = attention(states, rope(states, torch.arange(5)[None]), mask)

    projected = (states[0] @ attention.wqkv.weight.T + attention.wqkv.bias).tolist()  # (seq, (6 + 2 · 2) · 4)
    heads = []
    for query_head in range(6):
        kv_head, place = divmod(query_head, 3)
        first_row = 20 * kv_head  # three queries, a key and a value of 4 each
        part = {
            name: [row[first_row + 4 * index : first_row + 4 * (index + 1)] for row in projected]
            for name, index in (("query", place), ("key", 3), ("value", 4))
        }
        query = torch.tensor([rotated(row, p, 10_000) for p, row in enumerate(part["query"])])
        key = torch.tensor([rotated(row, p, 10_000) for p, row in enumerate(part["key"])])
        scores = (query @ key.T / 2.0).masked_fill(future, -torch.inf)  # sqrt(4) = 2
        heads.append(scores.softmax(-1) @ torch.tensor(part["value"]))
    expected = torch.cat(heads, dim=-1) @ attention.wo.weight.T + attention.wo.bias
    assert_close(output[0], expected, **CLOSE)


def test_layer_adds_both_branches(model):
    layer, rope = model.model.layers[0], model.model.rotary_emb
    states = torch.randn(2, 5, 24)
    positions = rope(states, torch.arange(5)[None])
    output, _ = layer(states, position_embeddings=positions)
    attended = states + layer.attention(layer.attention_norm(states), positions)[0]
    assert_close(output, attended + layer.feed_forward(layer.ffn_norm(attended)))


# Rotary position embedding.


def official_frequencies(length, dim, base, limit, factor):
    """Dynamic NTK scaling as in the official code, in plain floats."""
    if length > limit:
        base = base * (factor * length / limit - (factor - 1)) ** (dim / (dim - 2))
    return [1.0 / base ** (i / dim) for i in range(0, dim, 2)]


@pytest.mark.parametrize("length", [1, 40, 63, 64, 65, 100, 200, 1000])
def test_dynamic_ntk(length):
    config = tiny_config(hidden_size=48, rope_scaling={"type": "dynamic", "factor": 3.0})  # head_dim 8
    frequencies = InternLM2RotaryEmbedding(config).inverse_frequencies(torch.arange(length)[None])
    expected = official_frequencies(length, 8, 10_000, 64, 3.0)
    assert_close(frequencies, torch.tensor(expected), atol=0.0, rtol=1e-6)
    assert (length > 64) == (frequencies[-1] < 0.999e-3)


def test_dynamic_ntk_of_the_published_model():
    config = InternLM2Config(rope_scaling={"type": "dynamic", "factor": 3.0})
    rope = InternLM2RotaryEmbedding(config)
    for length in (32768, 40000):
        frequencies = rope.inverse_frequencies(torch.tensor([[length - 1]]))
        expected = official_frequencies(length, 128, 1_000_000, 32768, 3.0)
        assert_close(frequencies, torch.tensor(expected), atol=0.0, rtol=2e-6)


def test_linear_scaling():
    scaled = InternLM2RotaryEmbedding(tiny_config(rope_scaling={"type": "linear", "factor": 4.0}))
    plain = InternLM2RotaryEmbedding(tiny_config())
    states = torch.zeros(1)
    assert_close(scaled(states, torch.tensor([[0, 4, 8, 80]])), plain(states, torch.tensor([[0, 1, 2, 20]])))


def test_rope_angles_are_float32_whatever_the_weights_are():
    rope = InternLM2RotaryEmbedding(tiny_config())
    positions = torch.tensor([[1000]])
    exact, rounded = rope(torch.zeros(1), positions), rope(torch.zeros(1, dtype=torch.bfloat16), positions)
    assert [part.dtype for part in rounded] == [torch.bfloat16] * 2
    assert_close(rounded, tuple(part.bfloat16() for part in exact))


@torch.no_grad()
def test_a_long_call_leaves_nothing_behind():
    short, long = token_ids(1, 20), token_ids(1, 150)
    model = tiny_model(rope_scaling={"type": "dynamic", "factor": 3.0})
    fresh = model(short).logits
    model(long)
    assert torch.equal(model(short).logits, fresh)


@torch.no_grad()
def test_no_buffers_that_a_loader_could_leave_unset(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = InternLM2ForCausalLM.from_pretrained(tmp_path)
    assert dict(loaded.named_buffers()) == dict(model.named_buffers()) == {}
    ids = token_ids(2, 9)
    assert torch.equal(loaded(ids).logits, model(ids).logits)


# One computation, several routes.


@torch.no_grad()
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_cached_is_uncached(backend):
    model = tiny_model(backend)
    ids = token_ids(2, 12)
    whole = model(ids, use_cache=False)
    assert whole.past_key_values is None
    cache = DynamicCache()
    pieces = [model(ids[:, start:end], past_key_values=cache).logits for start, end in ((0, 7), (7, 8), (8, 12))]
    assert_close(torch.cat(pieces, 1), whole.logits, **CLOSE)
    assert cache.get_seq_length() == 12


@torch.no_grad()
def test_static_cache(model):
    ids = token_ids(2, 12)
    cache = StaticCache(config=model.config, max_cache_len=16)
    pieces = [model(ids[:, start:end], past_key_values=cache).logits for start, end in ((0, 7), (7, 8), (8, 12))]
    assert_close(torch.cat(pieces, 1), model(ids).logits, **CLOSE)
    tokens = model.generate(ids, cache_implementation="static", max_new_tokens=4, eos_token_id=None, **GREEDY)
    assert torch.equal(tokens, model.generate(ids, max_new_tokens=4, eos_token_id=None, **GREEDY))


@torch.no_grad()
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_left_padded_row_is_the_row_alone(backend):
    model = tiny_model(backend)
    short, long = token_ids(1, 5), token_ids(1, 9)
    ids = torch.cat([torch.cat([torch.zeros(1, 4, dtype=torch.long), short], 1), long])
    mask = torch.tensor([[0] * 4 + [1] * 5, [1] * 9])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = model(ids, attention_mask=mask, position_ids=positions).logits
    assert_close(logits[0, 4:], model(short).logits[0], **CLOSE)
    assert_close(logits[1], model(long).logits[0], **CLOSE)
    tokens = model.generate(ids, attention_mask=mask, max_new_tokens=6, eos_token_id=None, **GREEDY)
    for row, alone in ((tokens[0, 4:], short), (tokens[1], long)):
        assert torch.equal(row, model.generate(alone, max_new_tokens=6, eos_token_id=None, **GREEDY)[0])


@torch.no_grad()
def test_right_padding_changes_nothing(model):
    ids = token_ids(1, 5)
    padded = torch.cat([ids, torch.zeros(1, 3, dtype=torch.long)], 1)
    mask = torch.tensor([[1] * 5 + [0] * 3])
    assert_close(model(padded, attention_mask=mask).logits[:, :5], model(ids).logits, **CLOSE)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:flex_attention called without:UserWarning")
@pytest.mark.parametrize("backend", ["sdpa", "flex_attention"])
def test_backends_are_eager(backend):
    ids, mask = token_ids(2, 9), torch.tensor([[0] * 3 + [1] * 6, [1] * 9])
    model, eager = (tiny_model(name, hidden_size=96) for name in (backend, "eager"))
    assert model.model.layers[0].attention.config._attn_implementation == backend
    # Flex attention is meant to be compiled, which takes half a minute; its plain form computes the same.
    with torch.compiler.set_stance("force_eager"):
        logits, padded = model(ids).logits, model(ids, attention_mask=mask).logits
    assert_close(logits, eager(ids).logits, **CLOSE)
    assert_close(padded[mask.bool()], eager(ids, attention_mask=mask).logits[mask.bool()], **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("mask_shape", [None, (2, 1, 1, 9), (1, 1, 1, 9), (2, 6, 1, 9)])
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_a_single_token_attends_as_eager(mask_shape, dtype):
    """Batch, heads, groups and head size all differ: no two can be swapped unnoticed."""
    torch.manual_seed(0)
    attention = InternLM2Attention(tiny_config(), layer_idx=0)
    query, key, value = torch.randn(2, 6, 1, 4), torch.randn(2, 2, 9, 4), torch.randn(2, 2, 9, 4)
    seen = added = None
    if mask_shape is not None:
        seen = torch.rand(mask_shape) < 0.7
        seen[..., 0] = True
        added = torch.zeros(mask_shape).masked_fill(~seen, -torch.inf)
    expected, _ = eager_attention_forward(attention, query, key, value, added, scaling=0.3)
    mask = seen if dtype == torch.bool else added
    found, weights = single_token_sdpa_forward(attention, query, key, value, mask, scaling=0.3)
    assert_close(found, expected)
    assert weights is None


@torch.no_grad()
def test_embeddings_instead_of_ids(model):
    ids = token_ids(2, 7)
    embeds = model.get_input_embeddings()(ids)
    assert torch.equal(model(inputs_embeds=embeds).logits, model(ids).logits)
    options = {"max_new_tokens": 4, "eos_token_id": None, **GREEDY}
    assert torch.equal(model.generate(inputs_embeds=embeds, **options), model.generate(ids, **options)[:, 7:])


@torch.no_grad()
def test_beams_reorder_the_cache(model):
    ids = token_ids(2, 7)
    options = {"num_beams": 3, "max_new_tokens": 6, "eos_token_id": None, **GREEDY}
    assert torch.equal(model.generate(ids, **options), model.generate(ids, use_cache=False, **options))


# What is returned.


@torch.no_grad()
def test_logits_to_keep(model):
    ids = token_ids(2, 7)
    logits = model(ids).logits
    assert logits.shape == (2, 7, 50)
    assert_close(model(ids, logits_to_keep=1).logits, logits[:, -1:])
    assert_close(model(ids, logits_to_keep=3).logits, logits[:, -3:])
    assert_close(model(ids, logits_to_keep=torch.tensor([0, 5])).logits, logits[:, [0, 5]])


@torch.no_grad()
def test_hidden_states_and_attentions():
    model = tiny_model("eager")
    ids = token_ids(2, 7)
    plain = model(ids)
    assert plain.hidden_states is None
    assert plain.attentions is None
    output = model(ids, output_hidden_states=True, output_attentions=True)
    assert [tuple(state.shape) for state in output.hidden_states] == [(2, 7, 24)] * 3
    assert torch.equal(output.hidden_states[0], model.get_input_embeddings()(ids))
    assert_close(model.output(output.hidden_states[-1]), output.logits)  # the last one is normed
    assert len(output.attentions) == 2
    for weights in output.attentions:
        assert weights.shape == (2, 6, 7, 7)
        assert_close(weights.sum(-1), torch.ones(2, 6, 7))
        assert torch.equal(weights, weights.tril())
    model.config.output_hidden_states = True
    assert len(model(ids).hidden_states) == 3


@torch.no_grad()
def test_tuples_and_the_headless_model(model):
    ids = token_ids(1, 4)
    logits, cache = model(ids, return_dict=False)
    assert torch.equal(logits, model(ids).logits)
    assert isinstance(cache, DynamicCache)
    headless = InternLM2Model(model.config).eval()
    headless.load_state_dict(model.model.state_dict())
    assert_close(model.output(headless(ids).last_hidden_state), logits)


def test_loss_is_the_mean_cross_entropy_of_the_next_tokens(model):
    ids = token_ids(2, 7)
    labels = ids.clone()
    labels[0, :4] = -100
    output = model(ids, labels=labels)
    chances = output.logits[:, :-1].log_softmax(-1)
    losses = [
        -chances[row, place, labels[row, place + 1]]
        for row in range(2)
        for place in range(6)
        if labels[row, place + 1] != -100
    ]
    assert len(losses) == 9
    assert_close(output.loss, torch.stack(losses).mean())
    assert_close(model(ids, labels=labels, num_items_in_batch=18).loss, output.loss / 2)


def test_bias_reaches_both_projections():
    names = {name for name, _ in tiny_model(bias=True).named_parameters() if name.endswith("bias")}
    assert names == {f"model.layers.{i}.attention.{part}.bias" for i in range(2) for part in ("wqkv", "wo")}
    assert not [name for name, _ in tiny_model().named_parameters() if name.endswith("bias")]


def test_gradient_checkpointing_gives_the_same_gradients(model):
    def gradients():
        model.zero_grad()
        output = model(token_ids(2, 7), labels=token_ids(2, 7))
        output.loss.backward()
        return output, [parameter.grad for parameter in model.parameters()]

    model.train()
    output, expected = gradients()
    assert output.past_key_values is not None
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    calls = []
    model.model.layers[0].attention_norm.register_forward_hook(lambda *_: calls.append(1))
    output, checkpointed = gradients()
    assert output.past_key_values is None
    assert len(calls) == 2  # once forward, once again on the way back
    assert_close(checkpointed, expected)


# What is refused.


def test_ids_or_embeddings(model):
    embeds = torch.zeros(1, 2, 24)
    for inputs in ({}, {"input_ids": token_ids(1, 2), "inputs_embeds": embeds}):
        with pytest.raises(ValueError, match="Give exactly one of input_ids and inputs_embeds"):
            model(**inputs)


def test_tuples_are_no_cache(model):
    with pytest.raises(
        TypeError, match="past_key_values is a tuple; expected a Transformers cache object such as Dyn"
    ):
        model(token_ids(1, 2), past_key_values=((torch.zeros(1), torch.zeros(1)),))


# Recorded answers beyond the limit of dynamic RoPE: 64 positions, sequences of up to 200. Their ids hold the places of
# two pictures, which are the recorded `pixel_values`.


@pytest.fixture
def beyond(golden_case, golden_model):
    tensors, record = golden_case("c08_dynamic_ntk")
    return golden_model("c08_dynamic_ntk", attn_implementation="eager"), tensors, record


@torch.no_grad()
@pytest.mark.parametrize("name", ["short40", "long100", "long200"])
def test_recorded_logits_beyond_the_limit(beyond, name):
    model, tensors, _ = beyond
    embeds = model.embed_inputs(tensors[f"{name}.input_ids"], tensors["pixel_values"])
    output = model.language_model(inputs_embeds=embeds, output_hidden_states=True)
    recorded = f"{name}_fresh" if f"{name}_fresh.logits" in tensors else name
    assert_close(output.logits, tensors[f"{recorded}.logits"], **LOGITS)
    for index, state in enumerate(output.hidden_states):
        assert_close(state, tensors[f"{recorded}.llm_hidden.{index}"], **LOGITS)


@torch.no_grad()
def test_recorded_frequencies(beyond):
    model, tensors, _ = beyond
    rope = model.language_model.model.rotary_emb
    assert_close(rope.inverse_frequencies(torch.arange(200)[None]), tensors["long200.inv_freq_after"])


@pytest.mark.parametrize("name", ["from40", "cross50", "beyond100"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_recorded_tokens_across_the_limit(beyond, name, use_cache):
    """Cached keys keep the base of their step: beyond the limit a cache makes a difference, the one recorded."""
    model, tensors, record = beyond
    ids = tensors[f"{name}.input_ids"]
    expected = record[name]["tokens" if use_cache else "tokens_if_recomputed_without_cache"]
    tokens = model.generate(
        ids,
        pixel_values=tensors["pixel_values"],
        use_cache=use_cache,
        max_new_tokens=len(expected),
        eos_token_id=record["eos_token_id"],
        **GREEDY,
    )
    assert tokens[0, ids.shape[1] :].tolist() == expected


def test_recorded_tokens_of_a_left_padded_batch(beyond):
    """The longest row decides the base of all: a shorter row of the batch is not the row alone."""
    model, tensors, record = beyond
    ids, mask = tensors["leftpad.input_ids"], tensors["leftpad.attention_mask"]
    options = {"max_new_tokens": 24, "eos_token_id": record["eos_token_id"], **GREEDY}
    pixel_values = tensors["leftpad.pixel_values"]
    tokens = model.generate(ids, pixel_values=pixel_values, attention_mask=mask, **options)
    assert tokens[:, ids.shape[1] :].tolist() == record["leftpad"]["tokens"]
    alone = ids[1:, mask[1].bool()]
    tokens = model.generate(alone, pixel_values=pixel_values[2:], **options)
    assert tokens[0, alone.shape[1] :].tolist() == record["leftpad"]["row1_alone"]
