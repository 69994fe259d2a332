"""Graphs that are recorded for one size are right for others: nothing bakes the number of tiles or tokens in."""

import copy

import pytest
import torch
from PIL import Image
from tiny_models import ROUNDING, tiles, tiny_model
from transformers import AutoModelForImageTextToText, AutoProcessor


pytestmark = pytest.mark.newest


class Vision(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model.vision_model

    def forward(self, pixel_values):
        return self.model(pixel_values).last_hidden_state


class Features(Vision):
    def __init__(self, model):
        super().__init__(model)
        self.model = model

    def forward(self, pixel_values):
        return self.model.get_image_features(pixel_values)


class Decoder(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model.language_model

    def forward(self, inputs_embeds):
        return self.model(inputs_embeds=inputs_embeds, use_cache=False).logits


@pytest.fixture(scope="module")
def model():
    return tiny_model().eval()


def embeds(model, batch, seq):
    return torch.randn(batch, seq, model.config.llm_config.hidden_size, generator=torch.Generator().manual_seed(seq))


def cases(model):
    """For each part of the model an input to record, one of another size, and which of its sizes are free."""
    tile_sizes = ({0: torch.export.Dim("tiles")},)
    yield Vision(model), tiles(3), tiles(5), tile_sizes
    # More tiles than `vision_batch_size`, which outside a graph divides them.
    yield Features(model), tiles(9), tiles(20), tile_sizes
    token_sizes = ({0: torch.export.Dim("batch"), 1: torch.export.Dim("seq", max=512)},)
    yield Decoder(model), embeds(model, 2, 11), embeds(model, 3, 17), token_sizes


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("part", range(3), ids=["vision", "features", "decoder"])
@torch.no_grad()
def test_torch_export(model, part, strict):
    module, recorded, other, sizes = list(cases(model))[part]
    program = torch.export.export(module, (recorded,), dynamic_shapes=sizes, strict=strict)
    assert torch.equal(program.module()(other), module(other))


@pytest.mark.parametrize("part", range(3), ids=["vision", "features", "decoder"])
@torch.no_grad()
def test_jit_trace(model, part):
    module, recorded, other, _ = list(cases(model))[part]
    assert torch.equal(torch.jit.trace(module, recorded)(other), module(other))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(3), ids=["vision", "features", "decoder"])
@torch.no_grad()
def test_onnx(model, part, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    module, recorded, other, sizes = list(cases(model))[part]
    torch.onnx.export(module, (recorded,), dynamo=True, dynamic_shapes=sizes).save(tmp_path / "part.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "part.onnx")
    for given in (recorded, other):
        (answer,) = session.run(None, {session.get_inputs()[0].name: given.numpy()})
        torch.testing.assert_close(torch.from_numpy(answer), module(given), atol=1e-5 * ROUNDING, rtol=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_aot_inductor(model, tmp_path):
    module, recorded, other, sizes = next(cases(model))
    program = torch.export.export(module, (recorded,), dynamic_shapes=sizes)
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "vision.pt2"))
    compiled = torch._inductor.aoti_load_package(path)
    for given in (tiles(1), recorded, other, tiles(13)):
        torch.testing.assert_close(compiled(given), module(given), atol=1e-5 * ROUNDING, rtol=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_transformers_export_for_generation(tiny_folder):
    """The step that reads one token behind a cache, exported behind one prompt, is right behind others."""
    exporter = pytest.importorskip("transformers.exporters.exporter_dynamo")
    from_folder = {"pretrained_model_name_or_path": tiny_folder, "trust_remote_code": True}
    model = AutoModelForImageTextToText.from_pretrained(**from_folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(**from_folder)

    def prompt(question, size):
        content = [{"type": "image", "image": Image.new("RGB", size, "red")}, {"type": "text", "text": question}]
        return processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )

    config = exporter.DynamoConfig(dynamic=True)
    exported = exporter.DynamoExporter().export_for_generation(model, dict(prompt("What?", (300, 300))), config)
    step = exported.components["decode"].program.module()
    for question, size in (("What is red, and where is it?", (300, 300)), ("Why?", (900, 300))):
        inputs = prompt(question, size)
        cache = model.generate(**inputs, max_new_tokens=1, return_dict_in_generate=True).past_key_values
        seq = cache.get_seq_length()
        token = {"input_ids": inputs["input_ids"][:, -1:], "position_ids": torch.tensor([[seq]])}
        expected = model(**token, past_key_values=copy.deepcopy(cache)).logits
        assert torch.equal(step(**token, past_key_values=cache).logits, expected)
