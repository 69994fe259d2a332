"""Whatever answers runs as in evaluation, whatever training left behind, and puts the model's modes back."""

import copy
from pathlib import Path

import pytest
import torch
from internvl_chat.generation_internvl import answering, training_between_steps
from transformers import AutoModelForImageTextToText


ROOT = Path(__file__).resolve().parent.parent
QUESTION = "<image>\nWhat colour is the circle?"
SHORT = {"max_new_tokens": 8, "do_sample": False}


@pytest.fixture(scope="module")
def tiles(processor):
    return processor.image_processor(str(ROOT / "examples" / "shapes.png"), max_tiles=1)["pixel_values"]


@pytest.fixture(scope="module")
def batch(processor, tiles):
    messages = [
        {"role": "user", "content": [{"type": "image", "path": str(ROOT / "examples" / "shapes.png")}]},
        {"role": "assistant", "content": "a red circle"},
    ]
    return dict(processor.data_collator(max_tiles=1)([{"messages": messages}]))


@pytest.fixture
def model():
    """A model as trainers leave it: in training mode with gradient checkpointing, and with dropout."""
    model = AutoModelForImageTextToText.from_pretrained(
        ROOT, subfolder="tiny", trust_remote_code=True, dtype=torch.float32
    )
    for index, layer in enumerate(model.vision_model.encoder.layers):
        layer.drop_path.rate = 0.5 * (index > 0)
    model.train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.vision_model.eval()  # a caller's own mixture of modes
    model.vision_model.encoder.layers[1].train()
    return model


def modes(model):
    return {name: module.training for name, module in model.named_modules()}


def loss_and_gradients(model, batch):
    torch.manual_seed(0)
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return [loss.detach(), *(parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None)]


def chat(model, tokenizer, tiles):
    return model.chat(tokenizer, tiles, QUESTION, SHORT)


def batch_chat(model, tokenizer, tiles):
    return model.batch_chat(tokenizer, tiles, [QUESTION], SHORT)[0]


def stream(model, tokenizer, tiles):
    return "".join(model.chat_stream(tokenizer, tiles, QUESTION, SHORT))


def session(model, tokenizer, tiles):
    with model.start_chat(tokenizer, tiles, SHORT) as conversation:
        return conversation.chat(QUESTION)


def logprobs(model, tokenizer, tiles):
    return model.chat_with_logprobs(tokenizer, tiles, QUESTION, SHORT).text


def choices(model, tokenizer, tiles):
    scores = model.score_choices(tokenizer, tiles, QUESTION, ["blue", "red", "green"])
    return max(scores, key=lambda choice: choice.logprob).text


@pytest.mark.parametrize("ask", [chat, batch_chat, stream, session, logprobs, choices])
def test_answers_of_a_model_in_training(model, processor, tiles, batch, ask):
    before, expected = modes(model), loss_and_gradients(model, batch)
    assert ask(model, processor.tokenizer, tiles) == "red"
    assert modes(model) == before
    for found, old in zip(loss_and_gradients(model, batch), expected, strict=True):
        assert torch.equal(found, old)


def test_generate(model, processor, tiles):
    inputs = processor(images=str(ROOT / "examples" / "shapes.png"), text="<image>\nHi", return_tensors="pt")
    before = modes(model)
    found = model.generate(**inputs, **SHORT)
    assert modes(model) == before
    assert torch.equal(found, model.eval().generate(**inputs, **SHORT))


def test_training_in_the_middle_of_a_stream(model, processor, tiles, batch):
    """Between two pieces the model is as it was, so a training step has its own losses, and the answer goes on."""
    question = "<image>\nDescribe the picture."
    before, expected = modes(model), loss_and_gradients(model, batch)
    answer = model.chat(processor.tokenizer, tiles, question, {"max_new_tokens": 12, "do_sample": False})
    pieces = []
    for piece in model.chat_stream(processor.tokenizer, tiles, question, {"max_new_tokens": 12, "do_sample": False}):
        pieces.append(piece)
        assert modes(model) == before
        for found, old in zip(loss_and_gradients(model, batch), expected, strict=True):
            assert torch.equal(found, old)
    assert "".join(pieces) == answer
    assert len(pieces) > 2
    assert modes(model) == before


def test_a_stream_that_is_closed(model, processor, tiles):
    before = modes(model)
    pieces = model.chat_stream(processor.tokenizer, tiles, "<image>\nDescribe the picture.", SHORT)
    next(pieces)
    pieces.close()
    assert modes(model) == before


def test_an_answer_that_fails(model, processor, tiles):
    before = modes(model)
    with pytest.raises(ValueError, match="temperature"):
        model.chat(processor.tokenizer, tiles, QUESTION, {"do_sample": True, "temperature": -1.0})
    assert modes(model) == before


def test_adapters(model, processor, tiles, batch):
    """PEFT's dropout is a module like all others."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["wqkv", "wo"], lora_dropout=0.9, init_lora_weights=False, r=2)
    torch.manual_seed(0)
    adapted = peft.get_peft_model(copy.deepcopy(model).eval(), config)
    expected = adapted.chat(processor.tokenizer, tiles, QUESTION, SHORT)
    adapted.train()
    before = modes(adapted)
    assert adapted.chat(processor.tokenizer, tiles, QUESTION, SHORT) == expected
    assert modes(adapted) == before


def test_calls_that_overlap():
    """The last one to end puts the modes back."""
    model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Linear(1, 1))
    model[1].eval()
    first, second = answering(model), answering(model)
    first.__enter__()
    second.__enter__()
    assert not model[0].training
    with training_between_steps(model):
        assert model[0].training
        assert not model[1].training
    first.__exit__(None, None, None)
    assert not model[0].training
    second.__exit__(None, None, None)
    assert (model.training, model[0].training, model[1].training) == (True, True, False)
