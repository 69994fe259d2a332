"""Dynamic RoPE of Transformers' own language models: an answer does not depend on earlier, longer calls."""

import pytest
import torch
from internvl_chat.image_features_internvl import PromptFeatures
from internvl_chat.modeling_internvl_chat import InternVLChatModel
from internvl_chat.rope_internvl import check_takes_fractions, fractional_positions, mask_beside
from internvl_chat.tokenization_internlm2 import InternLM2Tokenizer
from tiny_models import GREEDY, IMAGE_TOKEN, check_logits, prompt, tiles, tiny_model


CASES = ("c14_internvl2_5_qwen2", "c16_internvl3_5_qwen3", "c17_internvl3_5_moe", "c20_internvl3_qwen2_long")
CASES += ("c18_internvl3_5_gpt_oss",)


@pytest.fixture(scope="module", params=CASES)
def family(request, goldens, golden_case):
    tensors, record = golden_case(request.param)
    folder = goldens / request.param / "checkpoint"
    try:
        model = InternVLChatModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    except ValueError as error:
        if "does not fuse the experts" not in str(error):
            raise
        pytest.skip(str(error))
    model.config.image_token_id = record["img_context_token_id"]
    return model, tensors


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_each_call_is_a_fresh_models(family, attention):
    model, tensors = family
    is_gpt_oss = model.config.llm_config.model_type == "gpt_oss"
    if is_gpt_oss and attention == "sdpa":
        pytest.skip("GPT-OSS has attention sinks, which PyTorch's fused attention does not know")
    tolerance = 1e-3 if is_gpt_oss else 3e-4
    model.set_attn_implementation(attention)
    names = ("pixel_values", "input_ids", "attention_mask", "image_flags")
    inputs = {name: tensors[name] for name in names}
    inputs["pixel_values"] = inputs["pixel_values"][: len(inputs["image_flags"])]
    tiles, prompt = inputs["pixel_values"], tensors["gen.input_ids"]
    for _ in range(2):
        check_logits(model(**inputs).logits, tensors, atol=tolerance)
        long = torch.full((1, 400), 5)
        model(input_ids=long)
    tokens = model.generate(
        prompt, pixel_values=tiles, do_sample=False, max_new_tokens=tensors["gen.tokens"].shape[1], pad_token_id=0
    )
    assert tokens[:, prompt.shape[1] :].tolist() == tensors["gen.tokens"].tolist()
    short = prompt[:, -20:]
    before = model(input_ids=short).logits
    model(input_ids=long)
    assert torch.equal(model(input_ids=short).logits, before)


# V2PE: image tokens advance by less than one position.

GREEDY_OPTIONS = {**GREEDY, "max_new_tokens": 5}
V2PE = {"rope_pos_id_version": "v2pe_fix", "rope_pos_id_stride": 64}
LANGUAGE_MODELS = ("internlm2", "llama", "qwen2", "qwen3", "phi3")


@pytest.mark.parametrize(
    ("stride", "positions"),
    [
        (256, [0, 1, 2, 3, 4, 5, 6, 7]),
        (128, [0, 1, 1.5, 2, 2.5, 3, 4, 5]),
        (64, [0, 1, 1.25, 1.5, 1.75, 2, 3, 4]),
        (32, [0, 1, 1.125, 1.25, 1.375, 1.5, 3, 4]),
    ],
)
def test_positions(stride, positions):
    """Text, <img>, four image tokens, </img>, text; the text goes on behind the ceiling."""
    is_image = torch.tensor([[0, 0, 1, 1, 1, 1, 0, 0]]) == 1
    assert fractional_positions(is_image, None, stride).tolist() == [positions]


def test_positions_of_several_images_and_padding():
    is_image = torch.tensor([[0, 0, 1, 1, 0, 0, 1, 1, 0], [1, 1, 0, 1, 1, 0, 0, 0, 0]]) == 1
    mask = torch.tensor([[1] * 9, [0, 0, 1, 1, 1, 1, 1, 1, 1]])
    assert fractional_positions(is_image, mask, 64).tolist() == [
        [0, 1, 1.25, 1.5, 3, 4, 4.25, 4.5, 6],
        [0, 0, 0, 0.25, 0.5, 2, 3, 4, 5],
    ]


def greedily(model, input_ids, pixel_values, positions, count):
    """Generate without a cache, every position given."""
    tokens = []
    for _ in range(count):
        logits = model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            position_ids=positions,
            attention_mask=torch.ones_like(input_ids),
            use_cache=False,
        ).logits
        tokens.append(logits[0, -1].argmax().item())
        input_ids = torch.cat([input_ids, torch.tensor([tokens[-1:]])], dim=1)
        positions = torch.cat([positions, positions[:, -1:] + 1], dim=1)
    return tokens


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("model_type", LANGUAGE_MODELS)
@torch.no_grad()
def test_generation_with_fractional_positions(model_type, attention):
    model = tiny_model(model_type)
    model.set_attn_implementation(attention)
    input_ids, pixel_values = prompt(3), tiles(3)
    positions = fractional_positions(input_ids == IMAGE_TOKEN, None, 64)
    expected = greedily(model, input_ids, pixel_values, positions, 5)
    inputs = {"pixel_values": pixel_values, **GREEDY_OPTIONS}
    length = input_ids.shape[1]
    for options in ({}, {"use_cache": False}):
        assert model.generate(input_ids, **inputs, **V2PE, **options)[0, length:].tolist() == expected
    plain = model.generate(input_ids, **inputs)
    assert model.generate(input_ids, **inputs, **V2PE | {"rope_pos_id_stride": 256}).tolist() == plain.tolist()
    assert model.generate(input_ids, **inputs, rope_pos_id_version="default").tolist() == plain.tolist()
    assert not torch.equal(
        model(input_ids=input_ids, pixel_values=pixel_values, position_ids=positions).logits,
        model(input_ids=input_ids, pixel_values=pixel_values).logits,
    )


@torch.no_grad()
def test_rows_of_a_batch_and_beams_have_their_own_positions():
    model, options = tiny_model("qwen2"), {**GREEDY_OPTIONS, **V2PE}
    rows, pixel_values = [prompt(1)[0].tolist(), prompt(3)[0].tolist()], tiles(4)
    longest = max(map(len, rows))
    input_ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    alone = []
    for row, one in zip(rows, pixel_values.split([1, 3]), strict=True):
        for guessing in ({}, {"prompt_lookup_num_tokens": 2}):
            tokens = model.generate(torch.tensor([row]), pixel_values=one, **options, **guessing)
            alone.append(tokens[0, len(row) :].tolist())
    assert alone[::2] == alone[1::2]
    batch = {"attention_mask": mask, "pixel_values": pixel_values}
    assert model.generate(input_ids, **batch, **options)[:, longest:].tolist() == alone[::2]
    assert model.generate(input_ids, **batch, **options, num_beams=2).shape == (2, longest + 5)


@torch.no_grad()
def test_fractional_positions_are_not_taken_for_packed_sequences():
    """Transformers' masks would; a mask is given where there is none."""
    model, input_ids, pixel_values = tiny_model("qwen2"), prompt(2), tiles(2)
    inputs = {"input_ids": input_ids, "pixel_values": pixel_values}
    positions = fractional_positions(input_ids == IMAGE_TOKEN, None, 64)
    for use_cache in (True, False):
        bare = model(**inputs, position_ids=positions, use_cache=use_cache).logits
        masked = model(**inputs, position_ids=positions, attention_mask=torch.ones_like(input_ids)).logits
        torch.testing.assert_close(bare, masked)


@pytest.fixture(scope="module")
def tiny(tiny_folder):
    model = InternVLChatModel.from_pretrained(tiny_folder, dtype=torch.float32).eval()
    return model, InternLM2Tokenizer.from_pretrained(tiny_folder)


def test_chat_and_sessions(tiny):
    model, tokenizer = tiny
    side = model.config.tile_size
    pixel_values = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    options = {"max_new_tokens": 8, "do_sample": False}
    said = {}
    for stride in (1, 16, 256):
        arguments = {"rope_pos_id_version": "v2pe_fix", "rope_pos_id_stride": stride}
        first, history = model.chat(tokenizer, pixel_values, "What is it?", options, return_history=True, **arguments)
        second = model.chat(tokenizer, pixel_values, "And now?", options, history=history, **arguments)
        said[stride] = (first, second)
        assert "".join(model.chat_stream(tokenizer, pixel_values, "What is it?", options, **arguments)) == first
        assert model.batch_chat(tokenizer, pixel_values, ["What is it?"], {**options, **arguments}) == [first]
        with model.start_chat(tokenizer, pixel_values, {**options, **arguments}) as session:
            assert session.chat("What is it?") == first
            assert session.chat("And now?") == second
    assert said[256][0] == model.chat(tokenizer, pixel_values, "What is it?", options)
    assert len(set(said.values())) > 1
    with model.start_chat(tokenizer, pixel_values, options) as session:  # other positions, another cache
        session.chat("What is it?", generation_config={**options, **V2PE, "rope_pos_id_stride": 256})
        session.history[0] = ("<image>\nWhat is it?", said[1][0])
        assert session.chat("And now?", generation_config={**options, **V2PE, "rope_pos_id_stride": 1}) == said[1][1]


def test_what_v2pe_refuses():
    model, input_ids = tiny_model("qwen2"), prompt(1)
    inputs = {"pixel_values": tiles(1), **GREEDY_OPTIONS}
    with pytest.raises(ValueError, match="rope_pos_id_version is 'v2pe_rnd'; known are 'default', 'v2pe_fix'"):
        model.generate(input_ids, **inputs, rope_pos_id_version="v2pe_rnd")
    with pytest.raises(ValueError, match="rope_pos_id_stride is 64, which only rope_pos_id_version='v2pe_fix' reads"):
        model.generate(input_ids, **inputs, rope_pos_id_stride=64)
    for stride in (None, 0, 257, "64", True):
        with pytest.raises(ValueError, match=r"rope_pos_id_stride is .*; expected a number above 0 and up to 256"):
            model.generate(input_ids, **inputs, rope_pos_id_version="v2pe_fix", rope_pos_id_stride=stride)
    embeds = model.get_input_embeddings()(input_ids)
    with pytest.raises(ValueError, match="V2PE is asked for, whose positions follow from all tokens before"):
        model.generate(inputs_embeds=embeds, **GREEDY_OPTIONS, **V2PE)
    features = PromptFeatures(None, input_ids, model, positions=torch.zeros(input_ids.shape))
    with pytest.raises(ValueError, match="V2PE is asked for with prompt tuning"):
        model(inputs_embeds=embeds, prompt_features=features)
    model.language_model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="V2PE is asked for with flash attention"):
        check_takes_fractions(model.language_model)


class Whole(torch.nn.Module):
    """A rotary embedding that looks positions up."""

    def forward(self, states, position_ids):
        table = torch.arange(10.0)[:, None]
        return table[position_ids.long()].cos(), table[position_ids.long()].sin()


@pytest.mark.parametrize("rotary", [Whole(), None])
def test_language_models_without_fractions_are_refused(rotary):
    model = tiny_model("qwen2")
    if rotary is None:
        del model.language_model.model.rotary_emb
    else:
        model.language_model.model.rotary_emb = rotary
    with pytest.raises(ValueError, match="V2PE is asked for, but Qwen2ForCausalLM takes no fractional positions"):
        model.generate(prompt(1), pixel_values=tiles(1), **GREEDY_OPTIONS, **V2PE)


def test_a_mask_stands_beside_fractional_positions_alone():
    assert mask_beside(torch.tensor([[0, 1]]), 3) is None
    assert mask_beside(torch.tensor([[0.0, 0.5]]), 3).tolist() == [[1] * 5]
