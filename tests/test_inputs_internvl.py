"""What callers give the model as tensors: what is unambiguous is accepted, everything else refused in a sentence."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from internvl_chat.image_features_internvl import EncodedImages
from internvl_chat.image_processing_internvl import InternVLImageProcessor
from internvl_chat.inputs_internvl import fitting_mask, is_ids, token_ids
from internvl_chat.processing_internvl import InternVLProcessor
from PIL import Image, features
from tiny_models import GREEDY, TILE_TOKENS, prompt, tiles, tiny_model


HALF = "a\ud800"  # half of a surrogate pair
SHORT = {"max_new_tokens": 2, **GREEDY}
ROW = torch.tensor([[1, 2]])


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def chatting(golden_model):
    return golden_model("c01_v15_26b")


@pytest.fixture(scope="module")
def processor(tokenizer):
    return InternVLProcessor(InternVLImageProcessor(tile_size=112), tokenizer)


def kinds(tensor):
    """The same tensor in the forms that cannot be computed with."""
    return {
        "sparse": tensor.to_sparse(),
        "complex": tensor.to(torch.complex64),
        "on the meta device": tensor.to("meta"),
    }


# Image features

HIDDEN = 24  # of `tiny_model`
GOOD = torch.zeros(1, TILE_TOKENS, HIDDEN)

BAD_FEATURES = [
    (GOOD.numpy(), TypeError, r"features is of type ndarray; expected a tensor \(tiles, tile_tokens, hidden\)"),
    (None, TypeError, "features is of type NoneType; expected a tensor"),
    (GOOD.long(), TypeError, "features is of dtype torch.int64; expected .* float32, bfloat16 or float16"),
    (GOOD.bool(), TypeError, "features is of dtype torch.bool"),
    (GOOD.to(torch.float8_e4m3fn), TypeError, "features is of dtype torch.float8_e4m3fn"),
    (GOOD[None], ValueError, r"features has shape \(1, 1, 4, 24\); expected \(tiles, tile_tokens, hidden\)"),
    (torch.full_like(GOOD, float("nan")), ValueError, "features holds NaN or infinite values; check the images"),
    (torch.full_like(GOOD, float("-inf")), ValueError, "features holds NaN or infinite values"),
    *[
        (value, ValueError, f"features is a tensor that is {kind}.*; expected a dense")
        for kind, value in kinds(GOOD).items()
    ],
]


@pytest.mark.parametrize(("value", "error", "message"), BAD_FEATURES)
def test_values_that_are_no_features(model, value, error, message):
    """As encoded images, and bare."""
    with pytest.raises(error, match=message):
        EncodedImages(value, (1,))
    if value is None:
        return
    for call in (model, model.generate):
        with pytest.raises(error, match=message):
            call(input_ids=prompt(1), visual_features=value)


@pytest.mark.parametrize("num_tiles", [(True,), (1.0,), 1, ("1",), None, torch.tensor([1.0])])
def test_counts_that_are_no_numbers(num_tiles):
    with pytest.raises(TypeError, match="num_tiles is .*; expected a whole number for each image"):
        EncodedImages(GOOD, num_tiles)
    assert EncodedImages(GOOD, torch.tensor([1])).num_tiles == (1,)


def test_fingerprints():
    own = tiny_model().encode_images(tiles(2), [1, 1])
    assert own.fingerprint == tiny_model().encode_images(tiles(1)).fingerprint == own.split()[1].fingerprint
    others = [tiny_model(ps_version="v1"), tiny_model(select_layer=-2), tiny_model().bfloat16()]
    fingerprints = {other.encode_images(tiles(1).to(other.dtype)).fingerprint for other in others}
    assert len(fingerprints | {own.fingerprint}) == 4


def test_features_of_another_model(chatting, tokenizer):
    """Width, image tokens of a tile, config and dtype; through every call that takes encoded images."""
    own = chatting.encode_images(torch.zeros(1, 3, 112, 112))
    ids = torch.tensor([[1, *[chatting.config.image_token_id] * own.tile_tokens, 7]])
    with pytest.raises(ValueError, match="visual_features are 23 wide; expected 48, the width of this model's"):
        chatting(input_ids=ids, visual_features=own.features[..., :23])
    cases = [
        (EncodedImages(own.features[..., :23], (1,)), "The features of EncodedImages are 23 wide; expected 48"),
        (EncodedImages(own.features[:, :3], (1,)), "have 3 image tokens a tile and come from no known model; exp"),
        (replace(own, fingerprint="another"), "EncodedImages come from another model .* of this model's config and"),
    ]
    for images, message in cases:
        calls = [
            lambda images=images: chatting(input_ids=ids, pixel_values=images),
            lambda images=images: chatting.generate(ids, pixel_values=images, **GREEDY),
            lambda images=images: chatting.embed_inputs(ids, images),
            lambda images=images: chatting.chat(tokenizer, images, "Hi"),
            lambda images=images: chatting.batch_chat(tokenizer, images, ["Hi"]),
            lambda images=images: list(chatting.chat_stream(tokenizer, images, "Hi")),
            lambda images=images: chatting.score_choices(tokenizer, images, "Hi", ["a"]),
            lambda images=images: chatting.chat_with_logprobs(tokenizer, images, "Hi"),
            lambda images=images: chatting.start_chat(tokenizer, images),
            lambda images=images: chatting.start_chat(tokenizer).chat("Hi", images),
        ]
        for call in calls:
            with pytest.raises(ValueError, match=message):
                call()
    session = chatting.start_chat(tokenizer, own)
    session.pictures[:] = [replace(own, fingerprint="another")]
    session.history[:] = [("<image>", "a")]
    with pytest.raises(ValueError, match="EncodedImages come from another model"):
        session.retry()


# Token ids and masks


def test_ids_that_are_unambiguous(model):
    ids = prompt(0)
    expected = model(input_ids=ids).logits
    for form in (ids[0], ids.tolist(), ids[0].tolist(), tuple(ids[0].tolist()), ids.int()):
        assert is_ids(form)
        assert torch.equal(model(input_ids=form).logits, expected)
        assert torch.equal(model(form).logits, expected)
        assert torch.equal(
            model.generate(form, max_new_tokens=2, **GREEDY), model.generate(ids, max_new_tokens=2, **GREEDY)
        )
    for mask in (torch.ones(1, 5), torch.ones(5), [1] * 5, [[1] * 5]):
        assert torch.equal(model(input_ids=ids, attention_mask=mask).logits, expected)


BAD_IDS = [
    (torch.tensor([[1, 100]]), ValueError, "input_ids holds the id 100; expected 0 to 99: use the checkpoint's own"),
    (torch.tensor([[-1, 5]]), ValueError, "input_ids holds the id -1; expected 0 to 99"),
    ([[1, 10**30]], ValueError, "input_ids is a list that is no tensor"),
    ([[1], [1, 2]], ValueError, "input_ids is a list that is no tensor .*; expected rows of the same length"),
    (["hi"], ValueError, "input_ids is a list that is no tensor"),
    ([1.5, 2.0], TypeError, "input_ids is of dtype torch.float32; expected .* whole numbers"),
    ([True, False], TypeError, "input_ids is of dtype torch.bool"),
    (
        torch.zeros(1, 1, 1, dtype=torch.long),
        ValueError,
        r"input_ids is \(1, 1, 1\); expected a tensor",
    ),
    ("hi", TypeError, "input_ids is of type str; expected a tensor"),
    (np.zeros((1, 2), int), TypeError, "input_ids is of type ndarray; expected a tensor"),
    *[(value, ValueError, f"input_ids is a tensor that is {kind}") for kind, value in kinds(ROW).items()],
]


@pytest.mark.parametrize(("value", "error", "message"), BAD_IDS)
def test_values_that_are_no_ids(model, value, error, message):
    for call in (lambda: model(input_ids=value), lambda: model.generate(value, **GREEDY)):
        with pytest.raises(error, match=message):
            call()


BAD_MASKS = [
    (torch.ones(1, 4), ValueError, r"attention_mask has shape \(1, 4\); expected \(1, 5\), 1 for each token"),
    (torch.ones(1, 6), ValueError, r"attention_mask has shape \(1, 6\); expected \(1, 5\)"),
    (torch.ones(2, 5), ValueError, r"attention_mask has shape \(2, 5\); expected \(1, 5\)"),
    (torch.ones(4), ValueError, r"attention_mask has shape \(4,\); expected \(1, 5\)"),
    ([[1, 1]], ValueError, r"attention_mask has shape \(1, 2\); expected \(1, 5\)"),
    (np.ones((1, 5)), TypeError, "attention_mask is of type ndarray; expected a tensor"),
    *[
        (value, ValueError, f"attention_mask is a tensor that is {kind}")
        for kind, value in kinds(torch.ones(1, 5)).items()
    ],
]


@pytest.mark.parametrize(("mask", "error", "message"), BAD_MASKS)
def test_masks_that_do_not_fit(model, mask, error, message):
    for call in (model, model.generate):
        with pytest.raises(error, match=message):
            call(input_ids=prompt(0), attention_mask=mask)


def test_no_tokens(model):
    for ids in ([], torch.zeros(1, 0, dtype=torch.long), torch.zeros(0, 3, dtype=torch.long)):
        with pytest.raises(ValueError, match="There are no tokens, but input of shape .*; give at least one"):
            model(input_ids=ids)
    with pytest.raises(ValueError, match=r"attention_mask has shape \(1, 1, 5\); expected \(1, 5\)"):
        model.generate(prompt(0), attention_mask=torch.ones(1, 1, 5))


def test_masks_of_a_cache(model):
    cache = model(input_ids=prompt(0), use_cache=True).past_key_values
    with pytest.raises(ValueError, match=r"attention_mask has shape \(1, 5\); expected \(1, 6\)"):
        model(input_ids=[[7]], attention_mask=torch.ones(1, 5), past_key_values=cache)
    assert model(input_ids=[[7]], attention_mask=torch.ones(1, 6), past_key_values=cache).logits.shape == (1, 1, 100)
    assert fitting_mask(None, 1, 5) is None
    assert token_ids([], None).shape == (1, 0)


# Tiles


BAD_TILES = [
    (tiles(1).numpy(), TypeError, "pixel_values is of type ndarray; expected a tensor"),
    (tiles(1).to(torch.uint8), TypeError, "pixel_values is of dtype torch.uint8; expected .* of floating point"),
    (tiles(1)[0], ValueError, r"pixel_values has shape \(3, 56, 56\); expected \(tiles, 3, height, width\)"),
    (
        torch.full_like(tiles(1), float("inf")),
        ValueError,
        "pixel_values holds NaN or infinite values; check the",
    ),
    *[(value, ValueError, f"pixel_values is a tensor that is {kind}") for kind, value in kinds(tiles(1)).items()],
]


@pytest.mark.parametrize(("value", "error", "message"), BAD_TILES)
def test_values_that_are_no_tiles(model, value, error, message):
    for call in (model, model.generate):
        with pytest.raises(error, match=message):
            call(input_ids=prompt(1), pixel_values=value)


# Everything else that callers get wrong: what it was, what was expected, what to do


IMAGE = Image.new("RGB", (20, 10), "red")
ASKED = [{"role": "user", "content": HALF}]
ANSWERED = [{"role": "user", "content": "a"}, {"role": "assistant", "content": HALF}]


def damaged(file_format):
    """The first half of a file."""
    file = io.BytesIO()
    Image.effect_noise((64, 64), 90).convert("RGB").save(file, file_format)
    return file.getvalue()[: len(file.getvalue()) // 2]


BAD_CALLS = {
    "surrogate in text": (lambda p: p(text=HALF), "holds half of a surrogate pair at position 1; expected Unicode"),
    "surrogate in a message": (lambda p: p.apply_chat_template(ASKED, tokenize=True), "half of a surrogate pair"),
    "surrogate in a rendered message": (lambda p: p.apply_chat_template(ASKED), "half of a surrogate pair"),
    "surrogate in an answer": (lambda p: p.data_collator()([{"messages": ANSWERED}]), "half of a surrogate pair"),
    "sparse image": (lambda p: p(torch.zeros(3, 4, 4).to_sparse()), "is a tensor that is sparse, expected a dense"),
    "complex image": (lambda p: p(torch.zeros(3, 4, 4).to(torch.complex64)), "is a tensor that is complex"),
    "meta image": (lambda p: p(torch.zeros(3, 4, 4, device="meta")), "is a tensor that is on the meta device"),
    "complex array": (lambda p: p(np.zeros((4, 4, 3), complex)), "has dtype complex128, expected uint8"),
    "array of objects": (lambda p: p(np.full((4, 4), None)), "has dtype object, expected uint8"),
    "boolean array": (lambda p: p(np.ones((4, 4), bool)), "has dtype bool, expected uint8"),
    "no image": (lambda p: p([None]), r"images\[0\] is of type NoneType, expected a PIL image"),
    "empty images": (lambda p: p([]), "Got no images, expected at least one"),
    "a cell of nothing": (lambda p: p({"bytes": None, "path": None}), "'bytes' and 'path' are empty"),
    "ids to decode, negative": (lambda p: p.post_process_image_text_to_text([[-1]]), "The token ids are .*expected"),
    "ids to decode, too large": (
        lambda p: p.post_process_image_text_to_text([[10**9]]),
        "is not in the vocabulary of",
    ),
    "ids to decode, True": (lambda p: p.post_process_image_text_to_text([True]), "The token ids are .*expected"),
    "ids to decode, sparse": (
        lambda p: p.post_process_image_text_to_text(torch.tensor([[1]]).to_sparse()),
        "The token ids is a tensor that is sparse",
    ),
    "ids to decode, meta": (
        lambda p: p.post_process_image_text_to_text(torch.zeros(1, 1, device="meta")),
        "The token ids is a tensor that is on the meta device",
    ),
    "an id alone": (lambda p: p.decode([10**9]), "The id 1000000000 is not in the vocabulary of 92553 tokens"),
    "max_tiles True": (lambda p: p(IMAGE, max_tiles=True), "max_tiles is True, expected a whole number"),
    "max_tiles of an image True": (lambda p: p([IMAGE], max_tiles=[True]), "max_tiles is True for an image"),
    "num_frames True": (
        lambda p: p(text="<video>", videos=[[IMAGE]], num_frames=True),
        "num_frames is True, expected a whole number of at least 1",
    ),
    "max_length True": (
        lambda p: p(text="a", max_length=True, truncation=True),
        "max_length is True, expected a",
    ),
    "max_length text": (lambda p: p(text="a", max_length="9", truncation=True), "max_length is '9', expected a whole"),
    "pad_to_multiple_of True": (
        lambda p: p(text="a", pad_to_multiple_of=True),
        "pad_to_multiple_of is True, ",
    ),
    "a size of True": (lambda p: p.count_image_tokens((True, True)), r"The image size is \(True, True\), expected"),
    "a mean beyond 1": (
        lambda p: p(IMAGE, image_mean=[123.7, 116.3, 103.5]),
        "divide by 255 what is meant for",
    ),
    "an infinite mean": (lambda p: p(IMAGE, image_mean=[float("inf")] * 3), "image_mean is .*expected three numbers"),
    "a deviation of nothing": (lambda p: p(IMAGE, image_std=[0, 1, 1]), "image_std is .*, expected positive numbers"),
    "a tiny deviation": (lambda p: p(IMAGE, image_std=[1e-30] * 3), "image_std .*, expected 0 to 1 and 0.001 to 1"),
    "means of True": (lambda p: p(IMAGE, image_mean=[True] * 3), "image_mean is .*expected three numbers"),
    "padding_side": (lambda p: p(text="a", padding_side="top"), "padding_side is 'top', expected 'left' or 'right'"),
    "a row without messages": (lambda p: p.data_collator()([{"text": "a"}]), "A row has text; expected messages"),
    "a row that is text": (lambda p: p.data_collator()(["a"]), "A row is 'a'; expected a dict with messages"),
    "a row that is None": (lambda p: p.data_collator()([None]), "A row is None; expected a dict with messages"),
    "no rows": (lambda p: p.data_collator()([]), "There are no rows; expected at least one conversation"),
    "damaged WebP": (lambda p: p(damaged("WEBP")), r"images\[0\] .*(is damaged|no image Pillow can read)"),
    "unknown tensors": (lambda p: p(IMAGE, return_tensors="tf"), "return_tensors is 'tf', expected 'pt' for tensors"),
    "messages of text": (
        lambda p: p.data_collator()([{"messages": ["a"]}]),
        "A row's messages are .*; expected dicts",
    ),
    "text to decode as a video": (lambda p: p(text="<video>", videos=[3]), "videos.0. is of type int, expected"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_what_the_processor_refuses(processor, name):
    call, message = BAD_CALLS[name]
    with pytest.raises((ValueError, TypeError, OSError), match=message):
        call(processor)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_damaged_avif(processor):
    with pytest.raises((ValueError, OSError), match=r"images\[0\] .*(is damaged|no image Pillow can read)"):
        processor(damaged("AVIF"))


def test_sources_that_are_accepted(processor, tmp_path):
    """Paths, cells of data sets and files, as image and as video, given apart and in messages."""
    IMAGE.save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    expected = processor(IMAGE)["pixel_values"]
    with (tmp_path / "a.png").open("rb") as file:
        for source in [
            tmp_path / "a.png",
            str(tmp_path / "a.png"),
            data,
            bytearray(data),
            memoryview(data),
            io.BytesIO(data),
            file,
            {"bytes": data, "path": None},
            {"bytes": None, "path": str(tmp_path / "a.png")},
            {"bytes": data, "path": "gone.png"},
        ]:
            assert torch.equal(processor(source)["pixel_values"], expected)
            for kind in ("image", "video"):
                message = {"role": "user", "content": [{"type": kind, kind: source}]}
                inputs = processor.apply_chat_template([message], tokenize=True, return_dict=True, max_tiles=1)
                assert inputs["pixel_values"].shape == (1, 3, 112, 112)


BAD_CHATS = {
    "surrogate in a question": ({"question": HALF}, "half of a surrogate pair"),
    "surrogate in the history": ({"question": "a", "history": [("b", HALF)]}, "half of a surrogate pair"),
    "surrogate in the system message": ({"question": "a", "system": HALF}, "half of a surrogate pair"),
    "counts of True": ({"question": "a", "num_patches_list": [True]}, "num_patches_list holds .*; expected whole"),
}


@pytest.mark.parametrize("name", BAD_CHATS)
def test_what_chat_refuses(chatting, tokenizer, name):
    arguments, message = BAD_CHATS[name]
    images = torch.zeros(1, 3, 112, 112) if "num_patches_list" in arguments else None
    for call in (
        lambda: chatting.chat(tokenizer, images, **arguments),
        lambda: chatting.score_choices(tokenizer, images, choices=["a"], **arguments),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_choices_and_batches_of_vision(chatting, tokenizer):
    with pytest.raises(ValueError, match="half of a surrogate pair"):
        chatting.score_choices(tokenizer, None, "a", [HALF])
    with pytest.raises(ValueError, match="vision_batch_size is True; expected at least 1 tile"):
        chatting.get_image_features(torch.zeros(1, 3, 112, 112), vision_batch_size=True)
