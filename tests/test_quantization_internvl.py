"""8 and 4 bits: what stays in 16 bits, and that a quantized model is its own dequantized weights, saved or not."""

import itertools
import json
import logging
from types import SimpleNamespace

import pytest
import torch
from family import small_layouts, write_folder
from internvl_chat.configuration_internvl_chat import InternVLChatConfig
from internvl_chat.modeling_internvl_chat import InternVLChatModel
from internvl_chat.quantization_internvl import UNQUANTIZED
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel


NF4 = {
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": torch.float32,
}
INT8 = {"load_in_8bit": True}
GREEDY = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": 6}


@pytest.fixture
def folder(goldens):
    return goldens / "c13_dims64_internlm2" / "checkpoint"


@pytest.fixture
def inputs(golden_case, folder):
    tensors, record = golden_case("c13_dims64_internlm2")
    inputs = {name: tensors[name] for name in ("pixel_values", "input_ids", "attention_mask")}
    in_config = InternVLChatConfig.from_pretrained(folder).image_token_id
    inputs["input_ids"] = inputs["input_ids"].masked_fill(
        inputs["input_ids"] == record["img_context_token_id"], in_config
    )
    return inputs


@pytest.fixture
def asked(monkeypatch):
    """Catch the quantization config that Transformers gets, without loading anything."""
    caught, loaded = (
        [],
        SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=2), config=SimpleNamespace(stop_token_id=None)),
    )
    monkeypatch.setattr(
        PreTrainedModel,
        "from_pretrained",
        classmethod(lambda cls, *args, **kwargs: caught.append(kwargs.get("quantization_config")) or (loaded, {})),
    )
    # A config looks whether bitsandbytes is there.
    monkeypatch.setattr(BitsAndBytesConfig, "post_init", lambda self: None)
    return caught


def test_what_transformers_is_told(asked):
    config = BitsAndBytesConfig(**NF4)
    InternVLChatModel.from_pretrained("x", quantization_config=config)
    assert asked[0].llm_int8_skip_modules == list(UNQUANTIZED)
    assert config.llm_int8_skip_modules is None, "the caller's config stays as it is"
    assert asked[0].bnb_4bit_quant_type == "nf4"
    InternVLChatModel.from_pretrained("x", quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    InternVLChatModel.from_pretrained("x", load_in_8bit=True)
    InternVLChatModel.from_pretrained("x", load_in_4bit=True)
    for config in asked[1:3]:
        assert config.load_in_8bit
    assert asked[3].load_in_4bit
    for config in asked:
        assert config.llm_int8_skip_modules == list(UNQUANTIZED)


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({}, torch.bfloat16),
        ({"dtype": "auto"}, torch.bfloat16),
        ({"dtype": torch.float16}, torch.float16),
        ({"torch_dtype": "float16"}, torch.float16),
    ],
)
def test_the_short_form_computes_in_the_dtype_asked_for(asked, options, dtype):
    InternVLChatModel.from_pretrained("x", load_in_4bit=True, **options)
    assert asked[0].bnb_4bit_compute_dtype == dtype


@pytest.mark.parametrize("own", [[], ["language_model.output"]])
def test_a_list_of_the_callers_is_taken_at_its_word(asked, own):
    InternVLChatModel.from_pretrained("x", quantization_config=BitsAndBytesConfig(**INT8, llm_int8_skip_modules=own))
    assert asked[0].llm_int8_skip_modules == own


def test_a_config_that_cannot_spare_anything_is_reported(asked, caplog):
    caplog.set_level(logging.WARNING)
    config = SimpleNamespace(skip_modules=["lm_head"])  # as HQQ's
    InternVLChatModel.from_pretrained("x", quantization_config=config)
    assert vars(asked[0]) == vars(config)
    assert "vision encoder" in caplog.text


@pytest.mark.parametrize("short", ["load_in_8bit", "load_in_4bit"])
def test_a_config_and_its_short_form_are_one_too_many(asked, short):
    with pytest.raises(ValueError, match=f"{short}=True and a quantization_config"):
        InternVLChatModel.from_pretrained("x", quantization_config=BitsAndBytesConfig(**INT8), **{short: True})
    assert not asked


def test_no_quantization(asked):
    InternVLChatModel.from_pretrained("x", load_in_8bit=False)
    assert asked == [None]


@pytest.fixture
def bitsandbytes():
    return pytest.importorskip("bitsandbytes")


def load(folder, options, **kwargs):
    config = BitsAndBytesConfig(**options)
    return InternVLChatModel.from_pretrained(folder, quantization_config=config, **{"dtype": torch.float32, **kwargs})


@pytest.mark.usefixtures("bitsandbytes")
@pytest.mark.parametrize(("options", "kind"), [(NF4, "Linear4bit"), (INT8, "Linear8bitLt")])
@pytest.mark.parametrize("case", ["c13_dims64_internlm2", "c13_dims64_llama"])
def test_what_is_quantized(goldens, options, kind, case):
    model = load(goldens / case / "checkpoint", options, dtype=torch.bfloat16)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            spared = name.startswith(("vision_model.", "mlp1.")) or module is model.get_output_embeddings()
            assert type(module).__name__ == ("Linear" if spared else kind), name
            assert not spared or module.weight.dtype == torch.bfloat16, name
    assert model.get_input_embeddings().weight.dtype == torch.bfloat16


SMALL = small_layouts()
# Language model → quantized matrices of each of its two layers; experts are fused into two tensors, which stay.
PER_LAYER = {
    "InternVL-Chat-V1-1": 7,
    "InternVL-Chat-V1-5": 5,
    "Mini-InternVL-Chat-4B-V1-5 (su)": 4,
    "InternVL3-1B": 7,
    "InternVL3-9B": 7,
    "InternVL3_5-1B": 7,
    "InternVL3_5-30B-A3B": 4,
    "InternVL3_5-GPT-OSS-20B-A4B": 4,
}


@pytest.mark.usefixtures("bitsandbytes", "goldens")
@pytest.mark.parametrize("name", PER_LAYER)
def test_what_is_quantized_in_each_language_model(name, tmp_path, caplog):
    folder = write_folder(tmp_path, SMALL[name])
    has_experts = "A3B" in name or "A4B" in name
    for options, kind in ((NF4, "Linear4bit"), (INT8, "Linear8bitLt")):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            model = load(folder, options, dtype=torch.bfloat16)
        names = [name for name, module in model.named_modules() if type(module).__name__ == kind]
        fused = [name for name, one in model.named_parameters() if one.ndim == 3 and ".experts." in name]
        experts = 0 if fused else 3 * 4 + 1  # releases before 5 have the matrices of each, and the router
        assert len(names) == 2 * (PER_LAYER[name] + (experts if has_experts else 0))
        assert all(name.startswith("language_model.model.layers.") for name in names)
        assert all(one.dtype == torch.bfloat16 for one in model.vision_model.parameters())
        reported = "Quantization leaves" in caplog.text
        assert reported == bool(fused)
        assert not fused or "in bfloat16, 0.00 GB: mlp.experts.down_proj, " in caplog.text
        assert not fused or "mlp.experts.gate_up_proj" in caplog.text


# The CPU kernels of bitsandbytes round inside the product, and 8 bits round activations too; random weights amplify
# both. Measured on logits of up to 14: 0.036 on average and 0.29 at most in 4 bits, 0.093 and 0.98 in 8 bits.
@pytest.mark.usefixtures("bitsandbytes")
@pytest.mark.parametrize(("options", "tolerance"), [(NF4, 0.1), (INT8, 0.25)])
@torch.no_grad()
def test_logits_are_those_of_its_own_weights(folder, inputs, options, tolerance):
    quantized, plain = load(folder, options), load(folder, options).dequantize()
    assert type(plain.language_model.model.layers[0].attention.wqkv) is nn.Linear
    assert torch.equal(
        quantized.get_image_features(inputs["pixel_values"]), plain.get_image_features(inputs["pixel_values"])
    )
    difference = (quantized(**inputs).logits - plain(**inputs).logits).abs()
    assert difference.max() < 8 * tolerance
    assert difference.mean() < tolerance


@pytest.mark.usefixtures("bitsandbytes")
@pytest.mark.parametrize("options", [NF4, INT8])
@torch.no_grad()
def test_save_and_load(folder, inputs, options, tmp_path):
    model = load(folder, options)
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text("utf-8"))["quantization_config"]
    assert saved["llm_int8_skip_modules"] == list(UNQUANTIZED)
    loaded = InternVLChatModel.from_pretrained(tmp_path, dtype=torch.float32)
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    tokens = loaded.generate(**inputs, **GREEDY)
    assert tokens.shape[1] == inputs["input_ids"].shape[1] + 6
    assert torch.equal(tokens, model.generate(**inputs, **GREEDY))


@pytest.mark.usefixtures("bitsandbytes")
@pytest.mark.parametrize("options", [NF4, INT8])
def test_the_embedded_checkpoint_still_answers(tiny_folder, options):
    from transformers import AutoModel, AutoProcessor  # noqa: PLC0415

    processor = AutoProcessor.from_pretrained(tiny_folder, trust_remote_code=True)
    model = AutoModel.from_pretrained(
        tiny_folder, trust_remote_code=True, quantization_config=BitsAndBytesConfig(**options)
    )
    assert type(model.mlp1[1]) is nn.Linear
    tiles = processor.image_processor("examples/shapes.png")["pixel_values"]
    with model.start_chat(processor.tokenizer, tiles, {"max_new_tokens": 16, "do_sample": False}) as session:
        assert "red" in session.chat("What colour is the circle?")


@pytest.mark.usefixtures("bitsandbytes")
def test_the_vision_encoder_may_wait_in_memory(tiny_folder):
    """The way to a smaller GPU: what is not quantized anyway visits it. Here a `torch.device` plays the GPU."""
    from transformers import AutoModel, AutoProcessor  # noqa: PLC0415

    gpu = torch.device("cpu")
    model = AutoModel.from_pretrained(
        tiny_folder,
        trust_remote_code=True,
        quantization_config=BitsAndBytesConfig(**NF4, llm_int8_enable_fp32_cpu_offload=True),
        device_map={"vision_model": "cpu", "mlp1": gpu, "language_model": gpu},
    )
    assert {parameter.device.type for parameter in model.vision_model.parameters()} == {"meta"}, "waits elsewhere"
    assert type(model.language_model.model.layers[0].attention.wqkv).__name__ == "Linear4bit"
    tokenizer = AutoProcessor.from_pretrained(tiny_folder, trust_remote_code=True)
    tiles = tokenizer.image_processor("examples/shapes.png")["pixel_values"]
    options = {"max_new_tokens": 16, "do_sample": False}
    assert "red" in model.chat(tokenizer.tokenizer, tiles, "What colour is the circle?", options)


@torch.no_grad()
def test_torchao(folder, inputs, tmp_path):
    quantization = pytest.importorskip("torchao.quantization")
    from transformers import TorchAoConfig  # noqa: PLC0415

    config = TorchAoConfig(quantization.Int8WeightOnlyConfig())
    model = InternVLChatModel.from_pretrained(folder, quantization_config=config, dtype=torch.bfloat16)
    assert config.modules_to_not_convert is None, "the caller's config stays as it is"
    kinds = {name: type(module.weight) for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for name, kind in kinds.items():
        spared = name.startswith(("vision_model.", "mlp1.")) or name == "language_model.output"
        assert (kind is nn.Parameter) == spared, name
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text("utf-8"))["quantization_config"]
    assert saved["modules_to_not_convert"] == list(UNQUANTIZED)
    loaded = InternVLChatModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


# Tasks that the embedded checkpoint has learned, and how many points of accuracy quantization may cost it.
EASY = ("colour", "shape", "count", "digit", "text_colour")
POINTS = {"int8": 1, "nf4": 3}


@pytest.fixture(scope="module")
def scores():
    """Ask the checkpoint, as it is and quantized, the same held-out questions; return points out of a hundred."""
    pytest.importorskip("bitsandbytes")
    from training import data, evaluate  # noqa: PLC0415

    asked = []

    def score(quantization):
        checkpoint = evaluate.Checkpoint(evaluate.TINY, "bfloat16", quantization)
        if not asked:
            drawn = evaluate.draw_questions(data.load_config(), 50, 7, checkpoint.num_tiles)
            one_tile = itertools.takewhile(lambda question: question.group == "one tile", drawn)
            try:  # they are drawn here, with fonts
                asked.extend(question for question in one_tile if question.turn.task in EASY)
            except FileNotFoundError as error:
                pytest.skip(str(error))
        results, _ = evaluate.evaluate(checkpoint, asked, 64)
        return 100 * sum(result.score for result in results) / len(asked), len(asked)

    return {quantization: score(quantization) for quantization in (None, *POINTS)}


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize("quantization", POINTS)
def test_accuracy(scores, quantization):
    (full, asked), (quantized, _) = scores[None], scores[quantization]
    assert asked == 50 * 2 * len(EASY)  # in two languages; a point is five answers
    assert full > 80, "learned, or there is nothing to lose"
    assert quantized >= full - POINTS[quantization]
