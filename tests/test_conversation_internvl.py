"""Conversations as ids: the official code's, the same in every route, and what is typed stays text."""

import json
import logging
import random
import shutil
from types import SimpleNamespace

import pytest
import torch
from internvl_chat.chat_internvl import ChatMixin
from internvl_chat.collator_internvl import ConversationCollator
from internvl_chat.conversation_internvl import (
    CUT,
    LITERAL,
    PromptEncoder,
    Visual,
    decode_answer,
    encode_conversation,
    ids_of,
    prepare_conversation,
    turns_of_history,
)
from internvl_chat.image_features_internvl import EncodedImages
from internvl_chat.image_processing_internvl import InternVLImageProcessor
from internvl_chat.processing_internvl import InternVLProcessor
from internvl_chat.prompt_format_internvl import CONTROL_TOKENS, PROMPT_FORMATS, Turn, prompt_format
from internvl_chat.tokenization_internlm2 import InternLM2Tokenizer
from PIL import Image
from transformers import AddedToken, AutoProcessor, GenerationConfig


# Where the package answers differently on purpose (docs/fidelity.md).
DELIBERATE = ("special tokens", "empty answer", "empty question", "more <image>")
CASES = ("c01_v15_26b", "c02_mini_2b", "c05_v12_llama", "c06_qwen2", "c11_chat_history", "c14_internvl2_5_qwen2")
CASES += ("c16_internvl3_5_qwen3", "c17_internvl3_5_moe", "c18_internvl3_5_gpt_oss", "c20_internvl3_qwen2_long")
TILE_TOKENS = 4


def of_format(template, tokenizer):
    """A processor of this format: tiles of 28 pixels, 1 image token each."""
    return InternVLProcessor(InternVLImageProcessor(tile_size=28, max_tiles=2), tokenizer, template=template)


@pytest.mark.parametrize("case", CASES)
def test_golden_ids(case, golden_case, goldens, tokenizer_of):
    """Everything between the caller's words and the ids is the official code's."""
    record = golden_case(case)[1]
    config = json.loads((goldens / record.get("checkpoint", f"{case}/checkpoint") / "config.json").read_text("utf-8"))
    tokenizer, compared = tokenizer_of(record.get("tokenizer", "tokenizer")), 0
    for chat in record["chats"]:
        if chat["name"].startswith(DELIBERATE):
            continue
        history, question, shape = chat["history_in"] or [], chat["question"], chat["pixel_values"]
        num_tiles = [] if shape is None else chat["num_patches_list"] or shape[:1]
        if num_tiles and not history and "<image>" not in question:
            question = f"<image>\n{question}"
        system = "You are a poet." if "system_message set" in chat["name"] else chat.get("system")
        system = config.get("system_message") if system is None else system
        turns = turns_of_history(history, question, bool(num_tiles))
        ids = encode_conversation(tokenizer, prompt_format(config["template"]), turns, num_tiles, 16, system)
        assert ids == chat["input_ids"], chat["name"]
        compared += 1
    assert compared >= len(record["chats"]) - 4


def official_text(template, system, turns):
    """Write (question, answer) turns, the last answer None, with the roles and separators of the official table."""
    im = ("<|im_start|>system\n", "<|im_start|>user\n", "<|im_start|>assistant\n")
    phi, oss = (
        ("<|system|>\n", "<|user|>\n", "<|assistant|>\n"),
        ("<|start|>system<|message|>", "<|start|>user<|message|>"),
    )
    roles, separators = {
        "internlm2-chat": (im, ["<|im_end|>"] * 2),
        "Hermes-2": (im, ["<|im_end|>"] * 2),
        "internvl2_5": (im, ["<|im_end|>\n"] * 2),
        "phi3-chat": (phi, ["<|end|>"] * 2),
        "internvl3_5_gpt_oss": ((*oss, "<|start|>assistant"), ["<|end|>"] * 2),
        "internvl_zh": (("", "<human>: ", "<bot>: "), [" ", "</s>"]),
    }[template]
    text = roles[0] + system + separators[0]
    for question, answer in turns:
        text += roles[1] + question + separators[0] + (roles[2].rstrip(" ") if answer is None else roles[2])
        text += "" if answer is None else answer + separators[1]
    return text


@pytest.mark.parametrize("template", PROMPT_FORMATS)
def test_ids_of_the_official_conversation(template, tokenizer_of):
    """System message, several turns, several images, frames of a video, thinking tags: the ids of the whole text."""
    tokenizer, style = tokenizer_of(template), prompt_format(template)
    frames = "\n".join(style.frame.format(index) + "<image>" for index in (1, 2))
    thought = "<think>\nA scale of 3 \u00d7 2.\n</think>\n\nIt is 6."
    conversations = [
        [("Hello, who are you?", None)],
        [("<image>\nDescribe it.", None)],
        [
            ("Image-1: <image>\nImage-2: <image>\nCompare them.", "They differ."),
            ("\u54ea\u4e2a\u66f4\u5927\uff1f", None),
        ],
        [(f"{frames}\nWhat happens?", thought), ("And then?", "Nothing."), ("<image>\nHere?", None)],
    ]
    for system in (
        style.system_message,
        "You are a poet.",
        style.thinking_message or "Think between <think> and </think>.",
    ):
        for turns in conversations:
            (*past, (question, _)) = turns
            num_images = sum(text.count("<image>") for text, _ in turns)
            tiles = [2, 1, 3][:num_images]
            text = official_text(template, system, turns)
            for count in tiles:
                image = f"<img>{'<IMG_CONTEXT>' * TILE_TOKENS * count}</img>"
                text = text.replace("<image>", image, 1)
            ids = encode_conversation(
                tokenizer, style, turns_of_history(past, question, True), tiles, TILE_TOKENS, system
            )
            assert ids == tokenizer(text).input_ids, (system, turns)


def test_the_thinking_message_is_an_option(tokenizer_of):
    style = prompt_format("internvl2_5")
    assert style.thinking_message.startswith(
        "You are an AI assistant that rigorously follows this response protocol:\n\n1."
    )
    assert style.thinking_message.endswith("should be standalone and not reference the thinking section.")
    assert prompt_format("internvl3_5_gpt_oss").thinking_message == style.thinking_message
    assert prompt_format("Hermes-2").thinking_message == ""
    processor = of_format("internvl2_5", tokenizer_of("tokenizer_qwen3"))
    messages = [{"role": "system", "content": processor.prompt_format.thinking_message}, *conversation("q", "a")[:1]]
    ids = processor.apply_chat_template(messages, tokenize=True, add_generation_prompt=True)[0]
    turns = turns_of_history([], "q", has_images=False)
    assert list(ids) == encode_conversation(processor.tokenizer, style, turns, system=style.thinking_message)


MARKS = ["<|im_end|>", "<|im_start|>system\n", "</s>", "<s>", "<unk>", "<IMG_CONTEXT>", "<img>", "</img>", "<|end|>"]
MARKS += ["<|user|>", "[UNUSED_TOKEN_145]", "[UNUSED_TOKEN_1", "［UNUSED_TOKEN_145］", "<|plugin|>", "<tool_call>"]
MARKS += ["<|start|>", "<|message|>", "<|return|>", "<<|im_end|>|im_end|>", "<|im_\ufdd0end|>", "&lt;|im_end|&gt;"]
MARKS += ["<|reserved_200000|>", "<human>: ", "<bot>:", "<image>", "<video>", "|im_end|>", "end|>", "<|end", "<|"]
MARKS += ["<ref>", "</box>"]
WORDS = ["What is it?", "你好，", "图中有什么", " ", "\n", "é", "😀", "red", "<seg>", "a<seg>", "<think>", "1 < 2"]
RED = Image.new("RGB", (60, 30), "red")


def typed(draw):
    return "".join(draw.choices(MARKS + WORDS, k=draw.randint(1, 6)))


def cut(draw, text):
    """Cut text anywhere into items."""
    places = sorted(draw.choices(range(len(text) + 1), k=draw.randint(0, 4)))
    ends = zip([0, *places], [*places, len(text)], strict=True)
    return [{"type": "text", "text": text[start:end]} for start, end in ends]


def random_conversation(draw):
    """Messages whose answers are text alone, and the same as history, question and number of images."""
    messages, pairs, num_images = [], [], 0
    for index in range(draw.randint(1, 5)):
        text = typed(draw).replace("<image>", "<img").strip() or "?"
        count = draw.randint(0, 3 if index == 0 else 1)
        messages.append({"role": "user", "content": [{"type": "image", "image": RED}] * count + cut(draw, text)})
        question, num_images = "<image>\n" * count + text, num_images + count
        answer = typed(draw).replace("<image>", "<img").strip() or "!"
        messages.append({"role": "assistant", "content": cut(draw, answer)})
        pairs.append((question, answer))
    return messages, pairs, num_images


class Echo(ChatMixin):
    """A model that notes the ids it is asked with, and answers with one of them; each tile is one image token."""

    def __init__(self, style):
        self.config = SimpleNamespace(template=style.name, llm_config=SimpleNamespace(layer_types=[]))
        self.system_message, self.device, self.generation_config = style.system_message, "cpu", GenerationConfig()
        self.asked = []

    def generate(self, input_ids, **kwargs):
        self.asked += input_ids.tolist()
        return torch.cat([input_ids, input_ids[:, :1]], dim=1)

    def num_image_tokens_of(self, height, width):
        return 1

    def check_encoded(self, images):
        assert images.features.shape[1:] == (1, 4)

    def encode_images(self, pixel_values, num_tiles):
        return EncodedImages(torch.zeros(len(pixel_values), 1, 4), tuple(num_tiles))


def ids_of_session(model, tokenizer, history, question, num_images):
    """The ids of a question to a session whose history these turns are, with three tiles an image."""
    # Another cache than a session's own, which this model does not fill.
    session = model.start_chat(tokenizer, generation_config={"use_cache": False})
    images = (
        model.encode_images(torch.zeros(3 * num_images, 3, 28, 28), [3] * num_images).split() if num_images else []
    )
    asked = question.count("<image>") if num_images else 0
    session.history[:], session.images[:] = history, images[: len(images) - asked]
    for image in images[len(images) - asked :]:
        session.show(image)
    session.chat(question)
    return model.asked.pop()


def ids_of_chat(model, tokenizer, history, question, num_images):
    tiles = torch.zeros(3 * num_images, 3, 28, 28) if num_images else None
    model.chat(tokenizer, tiles, question, history=history, num_patches_list=[3] * num_images if num_images else None)
    return model.asked.pop()


@pytest.mark.parametrize(
    ("template", "name"),
    [
        *((name, name) for name in PROMPT_FORMATS),
        ("internlm2-chat", "tiny slow"),
        ("internvl_zh", "tokenizer slow"),
    ],
)
def test_every_route_gives_the_same_ids(template, name, tokenizer_of):
    """Whatever is typed, however it is cut; and no control token is there but the format's own."""
    tokenizer = tokenizer_of(name)
    tokenizer.add_tokens(["<seg>"])
    style, processor = prompt_format(template), of_format(template, tokenizer)
    collate, draw = ConversationCollator(processor), random.Random(template)
    encoder, model = PromptEncoder(tokenizer), Echo(style)
    control = {tokenizer.convert_tokens_to_ids(token) for token in encoder.control_tokens}
    for _ in range(60):
        messages, pairs, num_images = random_conversation(draw)
        (*past, (question, answer)) = pairs
        turns = turns_of_history(past, question, bool(num_images))
        ids = encode_conversation(tokenizer, style, turns, [3] * num_images, 1)
        made = processor.apply_chat_template(
            messages[:-1], tokenize=True, return_dict=True, add_generation_prompt=True
        )
        assert list(made["input_ids"][0]) == ids
        assert ids_of_chat(model, tokenizer, past, question, num_images) == ids
        assert ids_of_session(model, tokenizer, past, question, num_images) == ids
        learned = collate.encode({"messages": messages})
        answers = [index for index, label in enumerate(learned["labels"].tolist()) if label != -100]
        start = answers[0] if not past else None
        row = learned["input_ids"].tolist()
        assert row[: len(ids)] == ids
        assert start in (None, len(ids))
        assert "pixel_values" not in made or len(made["pixel_values"]) == 3 * num_images
        # As many control tokens as the same conversation has without anything typed.
        bare = turns_of_history([("", "")] * len(past), "", has_images=False)
        expected = [one for one in encode_conversation(tokenizer, style, bare) if one in control]
        images = set(encoder.image_ids(1))
        assert [one for one in ids if one in control and one not in images] == expected
        assert sum(one in images for one in ids) == 5 * num_images
        own = tokenizer.convert_tokens_to_ids("<seg>")
        text = "".join(question + answer for question, answer in past) + question
        assert ids.count(own) == text.count("<seg>")


@pytest.mark.parametrize("template", PROMPT_FORMATS)
def test_a_template_that_marks_answers(template, tokenizer_of):
    """TRL's assistant_only_loss learns what the collator learns, and the marks change no other token."""
    tokenizer, style = tokenizer_of(template), prompt_format(template)
    writes_bos = PromptEncoder(tokenizer).begins_with_bos()
    marked, plain = (style.chat_template(writes_bos=writes_bos, marks_answers=marks) for marks in (True, False))
    words = ["Hi.", "A cat.", " Sure?\n", "是的 ", "{{ x }}", "Why?"]
    messages = [{"role": ("user", "assistant")[index % 2], "content": word} for index, word in enumerate(words[:-1])]
    messages.append({"role": "user", "content": [{"type": "text", "text": words[-1]}]})
    options = {"tokenize": True, "return_dict": True, "add_generation_prompt": True}
    made = tokenizer.apply_chat_template(messages, chat_template=marked, return_assistant_tokens_mask=True, **options)
    assert made["input_ids"] == tokenizer.apply_chat_template(messages, chat_template=plain, **options)["input_ids"]
    turns = [Turn(turn["role"], (words[i],), turn["role"] == "assistant") for i, turn in enumerate(messages)]
    pieces = PromptEncoder(tokenizer).encode(style, turns)
    assert made["input_ids"] == ids_of(pieces)
    assert made["assistant_masks"] == [int(piece.kind == "answer") for piece in pieces for _ in piece.ids]


def test_longer_conversations_begin_with_shorter_ones(tokenizer_of):
    encoder, style = PromptEncoder(tokenizer_of("tiny")), prompt_format("internlm2-chat")
    pairs = [(f"<image>\nquestion {index}", f"answer {index}") for index in range(4)]
    whole = ids_of(encoder.encode(style, turns_of_history(pairs[:-1], pairs[-1][0], True), [1] * 4, TILE_TOKENS))
    for count in range(1, 4):
        turns = turns_of_history(pairs[: count - 1], pairs[count - 1][0], True)
        part = ids_of(encoder.encode(style, turns, [1] * count, TILE_TOKENS))
        assert whole[: len(part)] == part


def test_pieces_are_labelled(tokenizer_of):
    tokenizer = tokenizer_of("tiny")
    encoder = PromptEncoder(tokenizer)
    turns = [Turn("user", ("See ", None, "!")), Turn("assistant", ("red",), is_learned=True)]
    pieces = encoder.encode(prompt_format("internlm2-chat"), turns, [2], TILE_TOKENS, awaits_answer=False)
    assert [(piece.role, piece.kind, piece.image) for piece in pieces[-5:]] == [
        ("user", "text", None),
        ("user", "image", 0),
        ("user", "text", None),
        ("assistant", "text", None),
        ("assistant", "answer", None),
    ]
    assert pieces[-4].ids == tokenizer("<img>" + "<IMG_CONTEXT>" * 8 + "</img>", add_special_tokens=False).input_ids
    assert pieces[-1].ids == tokenizer("red<|im_end|>", add_special_tokens=False).input_ids


@pytest.mark.parametrize(("question", "num_tiles"), [("<image><image>", [3]), ("no image", [3]), ("<image>", [1, 1])])
def test_missing_or_surplus_image(question, num_tiles, tokenizer_of):
    found = question.count("<image>")
    turns = turns_of_history([], question, has_images=True)
    with pytest.raises(ValueError, match=rf"has {found} <image> for {len(num_tiles)} image.*Write <image> once"):
        encode_conversation(tokenizer_of("tiny"), prompt_format("Hermes-2"), turns, num_tiles, TILE_TOKENS)


def test_what_cannot_be_encoded(tokenizer_of):
    with pytest.raises(ValueError, match="holds half of a surrogate pair at position 1; expected Unicode text"):
        PromptEncoder(tokenizer_of("tiny")).guard("a\ud800")
    with pytest.raises(TypeError, match="tokenizer is of type str; expected the checkpoint's tokenizer"):
        PromptEncoder("tokenizer")


def test_a_tokenizer_of_another_format_is_reported(tokenizer_of, caplog):
    caplog.set_level(logging.WARNING)
    tokenizer = tokenizer_of("tiny")
    encode_conversation(tokenizer, prompt_format("internvl3_5_gpt_oss"), turns_of_history([], "Hi", False))
    assert "has no token <|end|>, <|message|>, <|return|>, <|start|>, which the prompt format" in caplog.text


@pytest.mark.parametrize(
    ("text", "guarded"),
    [
        ("plain text", "plain text"),
        ("a<|im_end|>b", f"a<{CUT}|im_end|>b"),
        ("[UNUSED_TOKEN_145]", f"[{CUT}UNUSED_TOKEN_145]"),
        ("<IMG_CONTEXT><IMG_CONTEXT>", f"<{CUT}IMG_CONTEXT><{CUT}IMG_CONTEXT>"),
        ("<ref>cat</ref><box>[[1, 2, 3, 4]]</box>", "<ref>cat</ref><box>[[1, 2, 3, 4]]</box>"),
        (f"<{CUT}|im_end|>", f"<{CUT}|im_end|>"),  # the mark itself, typed, opens nothing
        (f"<{LITERAL}|im_end|>", f"<{CUT}|im_end|>"),
        ("<image>", "<image>"),
        ("<|im_end", "<|im_end"),
        ("<|start|>", "<|start|>"),  # no token of this tokenizer
    ],
)
def test_guard(text, guarded, tokenizer_of):
    assert PromptEncoder(tokenizer_of("tiny")).guard(text) == guarded


@pytest.mark.parametrize("mark", [mark for mark in MARKS if "UNUSED" not in mark])
def test_typed_control_tokens_can_be_read_back(mark, tokenizer):
    """No control id appears, and the text can be read back letter for letter."""
    encoder = PromptEncoder(tokenizer)
    ids = encoder.text_ids(encoder.guard(f"say {mark} now"))
    assert not {tokenizer.convert_tokens_to_ids(token) for token in encoder.control_tokens} & set(ids)
    text = tokenizer.decode(ids, clean_up_tokenization_spaces=False, spaces_between_special_tokens=False)
    assert text == f"say {mark.replace(CUT, '')} now"


def test_special_tokens_of_a_developer_are_vocabulary(tiny_folder):
    tokenizer = InternLM2Tokenizer.from_pretrained(tiny_folder)
    tokenizer.add_tokens(["<seg>", AddedToken("<depth>", special=True)], special_tokens=False)
    processor = of_format("internlm2-chat", tokenizer)
    row = processor.data_collator().encode({"messages": conversation("Where? <seg>", "Here<seg> and<depth>.")})
    ids = [tokenizer.convert_tokens_to_ids(token) for token in ("<seg>", "<depth>")]
    assert [row["input_ids"].tolist().count(one) for one in ids] == [2, 1]
    assert [row["labels"].tolist().count(one) for one in ids] == [1, 1]
    learned = [label for label in row["labels"].tolist() if label != -100]
    assert decode_answer(tokenizer, learned, "<|im_end|>") == "Here<seg> and<depth>."


def conversation(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def test_control_tokens_in_learned_answers(tiny_folder, caplog):
    caplog.set_level(logging.WARNING)
    tokenizer = InternLM2Tokenizer.from_pretrained(tiny_folder)
    processor = of_format("internlm2-chat", tokenizer)
    row = {"messages": conversation("Use <|plugin|>.", "<|plugin|> <|interpreter|> <IMG_CONTEXT>")}
    plugin, context = map(tokenizer.convert_tokens_to_ids, ("<|plugin|>", "<IMG_CONTEXT>"))
    as_text = processor.data_collator().encode(row)["input_ids"].tolist()
    assert "An answer holds <IMG_CONTEXT>, <|interpreter|>, <|plugin|>, learned as text" in caplog.text
    as_tokens = processor.data_collator(control_tokens=True).encode(row)
    assert (as_text.count(plugin), as_tokens["input_ids"].tolist().count(plugin)) == (0, 1)
    assert as_tokens["labels"].tolist().count(plugin) == 1
    assert context not in as_tokens["input_ids"].tolist()


def test_an_added_token_that_would_train_nothing(tiny_folder):
    tokenizer = InternLM2Tokenizer.from_pretrained(tiny_folder)
    tokenizer.add_tokens(["<mask-[UNUSED_TOKEN_7]>"])
    row = {"messages": conversation("Hi", "<mask-[UNUSED_TOKEN_7]>")}
    with pytest.raises(ValueError, match="holds the added token .*, which is encoded as other tokens"):
        of_format("internlm2-chat", tokenizer).data_collator().encode(row)


def test_decode_answer(tokenizer):
    ids = tokenizer("<ref>the cat</ref><box>[[10, 20, 300, 400]]</box> sits<|im_end|>").input_ids
    assert decode_answer(tokenizer, ids) == "<ref>the cat</ref><box>[[10, 20, 300, 400]]</box> sits"
    ids = tokenizer("Hello, 你好 world").input_ids
    assert decode_answer(tokenizer, ids) == tokenizer.decode(ids, skip_special_tokens=True)
    assert decode_answer(tokenizer, []) == ""
    assert decode_answer(tokenizer, tokenizer("yes STOP no").input_ids, stop="STOP") == "yes "


def test_the_header_of_an_answer_is_left_out(tokenizer_of):
    tokenizer, style = tokenizer_of("tokenizer_gpt_oss"), prompt_format("internvl3_5_gpt_oss")
    ids = tokenizer("<|channel|>final<|message|>A cat.<|return|>").input_ids
    assert decode_answer(tokenizer, ids, style.stop, style.answer_header) == "A cat."


@pytest.mark.parametrize("template", ["internvl2_5", "phi3-chat"])
def test_saved_processors_have_the_checkpoints_template(template, tiny_folder, tmp_path, caplog):
    """The package's template file beside another checkpoint is not used; config.json decides."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config |= {"template": template, "system_message": "Be brief."}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    expected = prompt_format(template).chat_template("Be brief.")
    processor.save_pretrained(tmp_path / "saved")
    again = AutoProcessor.from_pretrained(tmp_path / "saved", trust_remote_code=True)
    for one in (processor, again):
        assert one.chat_template == one.tokenizer.chat_template == expected
        start = prompt_format(template).write([], "Be brief.", awaits_answer=False)
        assert one.apply_chat_template(conversation("q", "a")).startswith("<s>" + start)
    assert (tmp_path / "saved" / "chat_template.jinja").read_text("utf-8") == expected


def test_a_template_of_the_callers_own(tiny_folder, tmp_path):
    own = "{% for message in messages %}{{ message['content'][0]['text'] }}{% endfor %}"
    processor = AutoProcessor.from_pretrained(tiny_folder, trust_remote_code=True, chat_template=own)
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path, trust_remote_code=True)
    assert again.apply_chat_template(conversation("q", "a")) == "qa"
    with pytest.raises(ValueError, match="has a chat template of its own; expected one of the package's"):
        again.data_collator().encode({"messages": conversation("q", "a")})


def test_tools_that_no_template_writes(tiny_folder):
    processor = AutoProcessor.from_pretrained(tiny_folder, trust_remote_code=True)
    with pytest.raises(ValueError, match="tools is given, but the chat template writes no tools"):
        processor.apply_chat_template(conversation("q", "a"), tools=[{"name": "f"}])


def test_frames_are_written_as_each_generation_was_trained(tokenizer_of):
    clip = [{"role": "user", "content": [{"type": "video", "video": [RED, RED]}, {"type": "text", "text": "What?"}]}]
    for template, label in (("internlm2-chat", "Frame1: "), ("internvl2_5", "Frame-1: ")):
        processor = of_format(template, tokenizer_of("tiny"))
        made = processor.apply_chat_template(clip, tokenize=True, return_dict=True, add_generation_prompt=True)
        row = processor.data_collator().encode({"messages": [*clip, {"role": "assistant", "content": "Red."}]})
        assert label in processor.tokenizer.decode(made["input_ids"][0])
        assert row["input_ids"].tolist()[: len(made["input_ids"][0])] == list(made["input_ids"][0])


def test_all_control_tokens_are_guarded_where_the_tokenizer_has_them(tokenizer_of):
    tokenizer = tokenizer_of("tokenizer_qwen3")
    encoder = PromptEncoder(tokenizer)
    added = set(tokenizer.get_added_vocab())
    vocabulary = added - encoder.control_tokens - {"<seg>"}
    assert vocabulary == {"<think>", "</think>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>"}
    assert encoder.control_tokens <= CONTROL_TOKENS


# Messages


def items_of(tokenizer, *items, role="user"):
    (message,) = prepare_conversation(tokenizer, [{"role": role, "content": list(items)}])
    return message["content"]


IMAGE_ITEM, CLIP = {"type": "image", "path": "a.png"}, {"type": "video", "path": "a.mp4"}


@pytest.fixture(scope="module")
def tiny(tokenizer_of):
    return tokenizer_of("tiny")


@pytest.mark.parametrize("key", ["image", "url", "path", "base64"])
def test_images_under_every_name(key, tiny):
    (item,) = items_of(tiny, {"type": "image", key: "x", "image" if key != "image" else "url": None, "max_tiles": 2})
    assert item.keys() == {"type", "image"}
    assert isinstance(item["image"], Visual)
    assert (item["image"].source, item["image"].settings) == ("x", {"max_tiles": 2})


@pytest.mark.parametrize("kind", ["image", "video"])
def test_links_as_openai_writes_them(kind, tiny):
    links = ["x", {"url": "x"}, {"url": "x", "detail": "low"}]
    visuals = [items_of(tiny, {"type": f"{kind}_url", f"{kind}_url": link})[0] for link in links]
    assert [visual["type"] for visual in visuals] == [kind] * 3
    assert [visual[kind].source for visual in visuals] == ["x"] * 3
    assert [visual[kind].settings for visual in visuals] == [{}, {}, {"resolution": "low"}]


def test_items_without_a_source_pass_and_unknown_items_do_not(tiny):
    assert items_of(tiny, {"type": "image"}) == [{"type": "image"}]
    with pytest.raises(ValueError, match="content of type 'audio'; expected text, image or video"):
        items_of(tiny, {"type": "image"}, {"type": "audio", "audio": 1})


def test_text_items_are_joined_before_they_are_guarded(tiny):
    items = [{"type": "text", "text": text} for text in ("Hi.<|im_", "end|>", "<|im_end")]
    assert items_of(tiny, *items) == [{"type": "text", "text": f"Hi.<{CUT}|im_end|><|im_end"}]
    assert items_of(tiny, items[0], IMAGE_ITEM, items[1])[0]["text"] == "Hi.<|im_"


def test_what_is_typed_stays_text(tiny):
    text = {"type": "text", "text": "<s> <image> <video>"}
    image, video = f"<{LITERAL}image>", f"<{LITERAL}video>"
    assert items_of(tiny, text)[0]["text"] == f"<{CUT}s> <image> <video>"
    assert items_of(tiny, text, IMAGE_ITEM)[0]["text"] == f"<{CUT}s> {image} <video>"
    assert items_of(tiny, text, CLIP)[0]["text"] == f"<{CUT}s> {image} {video}"
    assert items_of(tiny, text, role="assistant")[0]["text"] == f"<{CUT}s> {image} {video}"


def test_conversations_and_plain_content(tiny):
    first, second = prepare_conversation(tiny, [[{"role": "user", "content": "a"}], [{"role": "tool"}]])
    assert first == [{"role": "user", "content": [{"type": "text", "text": "a"}]}]
    assert second == [{"role": "tool", "content": []}]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "conversation is empty; expected at least one message"),
        ([[]], "conversation is empty"),
        ([{"role": "user", "content": [{"text": "hi"}]}], r"Content holds \{'text': 'hi'\}"),
        ([{"role": "user", "content": ["hi"]}], "Content holds 'hi'"),
        ("hi", "A conversation is 'hi'; expected a list of messages"),
        (["hi", "there"], "A conversation is 'hi'; expected a list of messages"),
        ({"role": "user", "content": "hi"}, "A conversation is {.*; expected a list of messages"),
        (
            [{"content": "hi"}],
            "A message is .*; expected a dict with content and a role of system, user, assistant, tool",
        ),
        ([{"role": "human", "content": "hi"}], "A message is .*'human'.*; expected a dict with content and a role"),
        ([{"role": "user"}, [{"role": "user"}]], r"A message is \[.*; expected a dict"),
        ([{"role": "user", "content": 5}], "Content is 5; expected text or a list of items"),
        ([{"role": "user", "content": {"type": "text", "text": "hi"}}], "Content is .*; expected text or a list"),
        ([{"role": "user", "content": [{"type": "text"}]}], "Content holds {'type': 'text'}"),
        ([{"role": "user", "content": [{"type": "text", "text": None}]}], "Content holds"),
        ([{"role": "user", "content": [{"type": 5}]}], "Content holds {'type': 5}"),
        (
            [{"role": "user", "content": [{"type": "image", "file": "a.png"}]}],
            "An item of type image has file and names no image; expected it under one of image, url, path, base64",
        ),
        (
            [{"role": "user", "content": [{"type": "image", "max_tiles": 2}]}],
            "image has max_tiles and names no image",
        ),
        ([{"role": "user", "content": [{"type": "image", "image": ["a", "b"]}]}], "names 2 images; write an item for"),
    ],
)
def test_bad_messages(messages, message, tiny):
    with pytest.raises(ValueError, match=message):
        prepare_conversation(tiny, messages)


def test_ignored_keys_of_an_item_are_reported(caplog, tiny):
    caplog.set_level(logging.WARNING)
    (item,) = items_of(tiny, {**CLIP, "fps": 2, "max_tils": 3, "text": None})
    assert item["video"].settings == {}
    assert "An item of type video has fps, max_tils, which are ignored; supported are max_tiles" in caplog.text


def test_items_without_a_source_may_be_forbidden(tiny):
    for item in ({"type": "image"}, {"type": "video", "video": None}):
        with pytest.raises(ValueError, match="An image or video item names nothing, and nothing is given apart"):
            prepare_conversation(tiny, [{"role": "user", "content": [item]}], takes_placeholders=False)
