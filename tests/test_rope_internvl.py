"""Dynamic RoPE of Transformers' own language models: an answer does not depend on earlier, longer calls."""

import pytest
import torch
from internvl_chat.modeling_internvl_chat import InternVLChatModel
from tiny_models import check_logits


CASES = ("c14_internvl2_5_qwen2", "c16_internvl3_5_qwen3", "c17_internvl3_5_moe", "c20_internvl3_qwen2_long")


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
    model.set_attn_implementation(attention)
    names = ("pixel_values", "input_ids", "attention_mask", "image_flags")
    inputs = {name: tensors[name] for name in names}
    inputs["pixel_values"] = inputs["pixel_values"][: len(inputs["image_flags"])]
    tiles, prompt = inputs["pixel_values"], tensors["gen.input_ids"]
    for _ in range(2):
        check_logits(model(**inputs).logits, tensors, atol=3e-4)
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
