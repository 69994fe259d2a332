"""InternViT against recorded states of the official code, and against plain restatements of its parts."""

import math

import pytest
import torch
from conftest import MODEL_CASES
from internvl_chat.configuration_intern_vit import InternVisionConfig
from internvl_chat.modeling_intern_vit import (
    DropPath,
    InternAttention,
    InternRMSNorm,
    InternVisionEmbeddings,
    InternVisionEncoderLayer,
    InternVisionModel,
)
from tiny_models import ROUNDING
from torch import nn
from torch.testing import assert_close


STATES = {"atol": 2e-5 * ROUNDING, "rtol": 0.0}
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
BIG = {"norm_type": "rms_norm", "qk_normalization": True, "qkv_bias": False}  # as in the 6B
EPS = 1e-2  # large enough to be noticed where it is forgotten
SMALL = {"norm_type": "layer_norm", "qk_normalization": False, "qkv_bias": True}  # as in the 300M


def tiny_config(**kwargs):
    """Tiles of 56 pixels: 4 × 4 patches and the class token."""
    sizes = {
        "hidden_size": 12,
        "num_attention_heads": 3,
        "intermediate_size": 20,
        "num_hidden_layers": 4,
        "image_size": 56,
        "initializer_factor": 1.0,
        "initializer_range": 0.3,
    }
    config = InternVisionConfig(**{**sizes, **kwargs})
    config._attn_implementation = "eager"
    return config


def scrambled(module):
    """Give every parameter a value of its own, norms and layer scales included."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module.eval()


def tiny_model(backend="eager", **kwargs):
    config = tiny_config(**kwargs)
    config._attn_implementation = backend
    return scrambled(InternVisionModel(config))


def tiles(count=2, height=56, width=56):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model():
    return tiny_model()


# Recorded states.


# Measured on torch 2.13: with eager attention every recorded state is met bit for bit.
@torch.no_grad()
@pytest.mark.parametrize("case", MODEL_CASES)
def test_recorded_states(golden_case, golden_model, case):
    tensors, _ = golden_case(case)
    vision_model = golden_model(case, attn_implementation="eager").vision_model
    output = vision_model(tensors["pixel_values"], output_hidden_states=True)
    assert len(output.hidden_states) == vision_model.config.num_hidden_layers + 1
    for index, state in enumerate(output.hidden_states):
        assert_close(state, tensors[f"vit_hidden.{index}"], **STATES)
    assert_close(output.last_hidden_state, tensors["vit_last_hidden_state"], **STATES)
    assert_close(output.pooler_output, tensors["vit_pooler_output"], **STATES)


# The parts.


def rms_norm(states, weight, eps):
    return states / (states.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def layer_norm(states, weight, bias, eps):
    centred = states - states.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight + bias


def gelu(states):
    return states * 0.5 * (1.0 + torch.erf(states / math.sqrt(2.0)))


def attention(layer, states, heads, big):
    """Tile by tile and head by head; the norms of the 6B see all heads at once."""
    query, key, value = (states @ part.T for part in layer.qkv.weight.chunk(3))
    if big:
        query, key = rms_norm(query, layer.q_norm.weight, EPS), rms_norm(key, layer.k_norm.weight, EPS)
    else:
        query, key, value = (
            part + bias for part, bias in zip((query, key, value), layer.qkv.bias.chunk(3), strict=True)
        )
    outputs = []
    for q, k, v in zip(*(part.chunk(heads, dim=-1) for part in (query, key, value)), strict=True):
        scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
        outputs.append(scores.softmax(-1) @ v)
    return torch.cat(outputs, -1) @ layer.proj.weight.T + layer.proj.bias


@torch.no_grad()
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", [BIG, SMALL], ids=["6B", "300M"])
def test_layer_step_by_step(backend, kind):
    config = tiny_config(layer_norm_eps=EPS, **kind)
    config._attn_implementation = backend
    layer = scrambled(InternVisionEncoderLayer(config, drop_path_rate=0.5))
    states = torch.randn(2, 5, 12)

    def norm(module, states):
        if kind is BIG:
            return rms_norm(states, module.weight, EPS)
        return layer_norm(states, module.weight, module.bias, EPS)

    expected = states + layer.ls1 * attention(layer.attn, norm(layer.norm1, states), 3, kind is BIG)
    inner = gelu(norm(layer.norm2, expected) @ layer.mlp.fc1.weight.T + layer.mlp.fc1.bias)
    expected = expected + layer.ls2 * (inner @ layer.mlp.fc2.weight.T + layer.mlp.fc2.bias)
    assert_close(layer(states)[0], expected, **CLOSE)


def test_query_and_key_norms_span_the_whole_width():
    big, small = InternAttention(tiny_config(**BIG)), InternAttention(tiny_config(**SMALL))
    assert big.q_norm.weight.shape == big.k_norm.weight.shape == (12,)
    assert big.qkv.bias is None
    assert isinstance(small.q_norm, nn.Identity)
    assert isinstance(small.k_norm, nn.Identity)
    assert small.qkv.bias.shape == (36,)


def test_norm_works_in_float32_and_rounds_before_the_weight():
    norm = InternRMSNorm(8).bfloat16()
    nn.init.normal_(norm.weight)
    states = torch.randn(4, 8).bfloat16()
    assert torch.equal(norm(states), norm.weight * rms_norm(states.float(), 1.0, 1e-6).bfloat16())


@torch.no_grad()
def test_embeddings_patch_by_patch():
    embeddings = scrambled(InternVisionEmbeddings(tiny_config(image_size=28)))  # 2 × 2 patches
    picture = tiles(1, 28, 28)
    weight, bias = embeddings.patch_embedding.weight.flatten(1), embeddings.patch_embedding.bias
    corners = [(0, 0), (0, 14), (14, 0), (14, 14)]  # row by row
    patches = [picture[0, :, y : y + 14, x : x + 14].flatten() @ weight.T + bias for y, x in corners]
    expected = torch.stack([embeddings.class_embedding[0, 0], *patches]) + embeddings.position_embedding[0]
    assert_close(embeddings(picture)[0], expected, **CLOSE)


def cubic_weights(position, size):
    """Weights of a cubic convolution (a = -0.75) at a position, edges repeated."""
    first = math.floor(position) - 1
    weights = [0.0] * size
    for index in range(first, first + 4):
        distance = abs(position - index)
        if distance <= 1:
            weight = 1.25 * distance**3 - 2.25 * distance**2 + 1
        else:
            weight = -0.75 * (distance**3 - 5 * distance**2 + 8 * distance - 4)
        weights[min(max(index, 0), size - 1)] += weight
    return weights


@torch.no_grad()
@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (2, 2), (4, 7), (6, 3)])
def test_positions_for_another_size(rows, columns):
    embeddings = scrambled(InternVisionEmbeddings(tiny_config()))
    grid = embeddings.position_embedding[0, 1:].reshape(4, 4, 12)
    # Centres of the new cells on the old grid.
    down, right = (
        torch.tensor([cubic_weights((index + 0.5) * 4 / count - 0.5, 4) for index in range(count)])
        for count in (rows, columns)
    )
    resized = torch.einsum("rh,cw,hwd->rcd", down, right, grid).reshape(rows * columns, 12)
    expected = torch.cat([embeddings.position_embedding[0, :1], resized])
    assert_close(embeddings.interpolated_positions(rows, columns)[0], expected, **CLOSE)


@torch.no_grad()
def test_positions_of_the_trained_size_are_untouched(model):
    assert model.embeddings.interpolated_positions(4, 4) is model.embeddings.position_embedding


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(112, 112), (28, 84), (14, 14)])
def test_tiles_of_another_size(model, height, width):
    output = model(tiles(2, height, width), output_hidden_states=True)
    rows, columns = height // 14, width // 14
    assert output.last_hidden_state.shape == (2, 1 + rows * columns, 12)
    patches = model.embeddings.patch_embedding(tiles(2, height, width))
    positions = model.embeddings.interpolated_positions(rows, columns)
    last_cell = patches[:, :, -1, -1] + positions[:, -1]
    assert_close(output.hidden_states[0][:, -1], last_cell)


@torch.no_grad()
def test_interpolation_works_in_float32():
    model = tiny_model().bfloat16()
    exact = model.embeddings.float().interpolated_positions(8, 8)
    rounded = model.embeddings.bfloat16().interpolated_positions(8, 8)
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(rounded, exact.bfloat16())


# Routes.


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:flex_attention called without:UserWarning")
@pytest.mark.parametrize("kind", [BIG, SMALL], ids=["6B", "300M"])
@pytest.mark.parametrize("backend", ["sdpa", "flex_attention"])
def test_backends_are_eager(backend, kind):
    # Flex attention is meant to be compiled, which takes half a minute; its plain form computes the same.
    with torch.compiler.set_stance("force_eager"):
        output, expected = (tiny_model(name, **kind)(tiles(2, 28, 42)) for name in (backend, "eager"))
    assert_close(output.last_hidden_state, expected.last_hidden_state, **CLOSE)


@torch.no_grad()
def test_tiles_do_not_see_each_other(model):
    together = model(tiles(3)).last_hidden_state
    for index in range(3):
        assert_close(model(tiles(3)[index : index + 1]).last_hidden_state[0], together[index], **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize(
    ("select_layer", "layers_run"), [(0, 0), (1, 1), (3, 3), (4, 4), (-1, 4), (-2, 3), (-4, 1), (-5, 0)]
)
def test_select_layer_runs_only_what_it_needs(model, select_layer, layers_run):
    every = model(tiles(), output_hidden_states=True).hidden_states
    calls = []
    for index, layer in enumerate(model.encoder.layers):
        layer.register_forward_hook(lambda *_, index=index: calls.append(index))
    output = model(tiles(), select_layer=select_layer)
    assert calls == list(range(layers_run))
    assert torch.equal(output.last_hidden_state, every[select_layer])
    assert torch.equal(output.pooler_output, every[select_layer][:, 0])
    assert output.hidden_states is None


@torch.no_grad()
def test_dtype_follows_the_weights(model):
    model.bfloat16()
    assert model(tiles()).last_hidden_state.dtype == torch.bfloat16
    assert model(tiles().double()).last_hidden_state.dtype == torch.bfloat16


# What is returned.


@torch.no_grad()
def test_hidden_states_and_attentions_on_request(model):
    plain = model(tiles())
    assert plain.hidden_states is None
    assert plain.attentions is None
    output = model(tiles(), output_hidden_states=True, output_attentions=True)
    assert [tuple(state.shape) for state in output.hidden_states] == [(2, 17, 12)] * 5
    assert torch.equal(output.hidden_states[0], model.embeddings(tiles()))
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
    assert [tuple(weights.shape) for weights in output.attentions] == [(2, 3, 17, 17)] * 4
    for weights in output.attentions:
        assert_close(weights.sum(-1), torch.ones(2, 3, 17))
    model.config.output_hidden_states = True
    assert len(model(tiles()).hidden_states) == 5


@torch.no_grad()
def test_tuples(model):
    last, pooled = model(tiles(), return_dict=False)
    assert torch.equal(last, model(tiles()).last_hidden_state)
    assert torch.equal(pooled, last[:, 0])


@torch.no_grad()
def test_save_and_load(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = InternVisionModel.from_pretrained(tmp_path, attn_implementation="eager")
    assert torch.equal(loaded(tiles()).last_hidden_state, model(tiles()).last_hidden_state)
    assert dict(loaded.named_buffers()) == {}
    assert loaded.get_input_embeddings() is loaded.embeddings.patch_embedding


# Training.


def test_drop_path_rises_from_layer_to_layer():
    rates = [layer.drop_path.rate for layer in InternVisionModel(tiny_config(drop_path_rate=0.3)).encoder.layers]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])
    (only,) = InternVisionModel(tiny_config(drop_path_rate=0.3, num_hidden_layers=1)).encoder.layers
    assert only.drop_path.rate == 0.0


def test_drop_path_drops_whole_tiles_and_keeps_the_mean():
    torch.manual_seed(0)
    branch = torch.ones(4000, 2, 3)
    drop_path = DropPath(0.75)
    dropped = drop_path.train()(branch)
    assert {tuple(tile) for tile in dropped.flatten(1).tolist()} == {(0.0,) * 6, (4.0,) * 6}
    assert abs(dropped.mean() - 1) < 0.1
    assert drop_path.eval()(branch) is branch
    assert DropPath(0.0).train()(branch) is branch


def test_dropout_acts_in_training_only():
    model = tiny_model(dropout=0.5, attention_dropout=0.5)
    assert torch.equal(model(tiles()).last_hidden_state, tiny_model()(tiles()).last_hidden_state)
    model.train()
    assert not torch.equal(model(tiles()).last_hidden_state, model(tiles()).last_hidden_state)


def test_gradient_checkpointing_gives_the_same_gradients(model):
    def gradients():
        model.zero_grad()
        model(tiles(), select_layer=-2).last_hidden_state.pow(2).mean().backward()
        return [parameter.grad for parameter in model.parameters()]

    model.train()
    expected = gradients()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    calls = []
    model.encoder.layers[0].norm1.register_forward_hook(lambda *_: calls.append(1))
    assert_close(gradients(), expected)
    assert len(calls) == 2  # once forward, once again on the way back


# What is refused.


@pytest.mark.parametrize(
    "shape",
    [(3, 56, 56), (1, 1, 3, 56, 56), (1, 4, 56, 56), (1, 56, 56, 3), (1, 3, 56, 60), (1, 3, 57, 56), (1, 3, 0, 56)],
)
def test_shapes_that_are_no_tiles(model, shape):
    found = ", ".join(map(str, shape))
    with pytest.raises(
        ValueError, match=rf"has shape \({found}\); expected \(tiles, 3, height, width\) with sides th"
    ):
        model(torch.zeros(shape))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_pictures_that_are_not_normalised(model, dtype):
    with pytest.raises(TypeError, match=f"has dtype {dtype}; expected normalised floating point tiles"):
        model(torch.zeros(1, 3, 56, 56, dtype=dtype))


@pytest.mark.parametrize("select_layer", [5, -6])
def test_layers_that_do_not_exist(model, select_layer):
    with pytest.raises(
        ValueError, match=f"select_layer is {select_layer}, but the vision encoder has 5 states: choose"
    ):
        model(tiles(), select_layer=select_layer)
