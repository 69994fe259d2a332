"""Prompt formats as text, against literal prompts, and as chat templates that write the same."""

import random
from pathlib import Path

import pytest
from internvl_chat.prompt_format_internvl import (
    CONTROL_TOKENS,
    GPT_OSS_SYSTEM_MESSAGE,
    INTERNVL2_5_SYSTEM_MESSAGE,
    INTERNVL_SYSTEM_MESSAGE,
    PROMPT_FORMATS,
    Turn,
    prompt_format,
)
from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment


ROOT = Path(__file__).resolve().parent.parent
TURNS = [Turn("user", ("q1",)), Turn("assistant", ("a1",)), Turn("user", ("q2",))]
CHATML = (
    "<|im_start|>system\nS<|im_end|><|im_start|>user\nq1<|im_end|><|im_start|>assistant\na1<|im_end|>"
    "<|im_start|>user\nq2<|im_end|><|im_start|>assistant\n"
)


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        ("internlm2-chat", CHATML),
        ("Hermes-2", CHATML),
        (
            "phi3-chat",
            "<|system|>\nS<|end|><|user|>\nq1<|end|><|assistant|>\na1<|end|><|user|>\nq2<|end|><|assistant|>\n",
        ),
        ("internvl2_5", CHATML.replace("<|im_end|>", "<|im_end|>\n")),
        (
            "internvl3_5_gpt_oss",
            "<|start|>system<|message|>S<|end|><|start|>user<|message|>q1<|end|><|start|>assistanta1<|end|>"
            "<|start|>user<|message|>q2<|end|><|start|>assistant",
        ),
        ("internvl_zh", "S <human>: q1 <bot>: a1</s><human>: q2 <bot>:"),
    ],
)
def test_every_official_template(template, prompt):
    assert prompt_format(template).write(TURNS, "S") == prompt
    assert prompt_format(template).write([Turn("system", ("S",)), *TURNS], "not this") == prompt


def test_facts_of_each_format():
    found = {name: (style.system_message, style.stop, style.frame) for name, style in PROMPT_FORMATS.items()}
    assert found == {
        "internlm2-chat": (INTERNVL_SYSTEM_MESSAGE, "<|im_end|>", "Frame{}: "),
        "Hermes-2": (INTERNVL_SYSTEM_MESSAGE, "<|im_end|>", "Frame{}: "),
        "phi3-chat": (INTERNVL_SYSTEM_MESSAGE, "<|end|>", "Frame{}: "),
        "internvl2_5": (INTERNVL2_5_SYSTEM_MESSAGE, "<|im_end|>", "Frame-{}: "),
        "internvl3_5_gpt_oss": (GPT_OSS_SYSTEM_MESSAGE, "<|return|>", "Frame-{}: "),
        "internvl_zh": ("", "</s>", "Frame{}: "),
    }
    assert INTERNVL_SYSTEM_MESSAGE.startswith("你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型")


def test_unknown_template_and_role():
    with pytest.raises(ValueError, match=r"template is 'vicuna'; known are 'internlm2-chat', .*Set config.template"):
        prompt_format("vicuna")
    with pytest.raises(ValueError, match="role 'tool'; the prompt format phi3-chat has only system, user, assistant"):
        prompt_format("phi3-chat").write([Turn("tool", ("x",))])


def compiled(template):
    def refuse(message):
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    return environment.from_string(template)


def rendered(template, messages, **variables):
    return compiled(template).render(messages=messages, **variables)


def random_text(draw):
    letters = [
        "a",
        " ",
        "\n",
        "你",
        "{{ x }}",
        "{% if %}",
        "'",
        '"',
        "\\",
        "\\n",
        "<|im_end|>",
        "é",
        "😀",
        "\t",
        "<b>",
    ]
    return "".join(draw.choices(letters, k=draw.randint(0, 8)))


@pytest.mark.parametrize("name", PROMPT_FORMATS)
def test_the_chat_template_writes_what_the_format_writes(name):
    style, draw = prompt_format(name), random.Random(14)
    templates = {system: compiled(style.chat_template(system)) for system in (None, "", random_text(draw), "{{ x }}")}
    for _ in range(1000):
        system = draw.choice(list(templates))
        own = draw.choice([None, random_text(draw)])
        roles = [role for _ in range(draw.randint(0, 3)) for role in ("user", "assistant")]
        messages = [{"role": "system", "content": own}] if own is not None else []
        turns = [Turn("system", (own,))] if own is not None else []
        for role in [*roles, "user"]:
            items = [draw.choice([{"type": "image"}, {"type": "text", "text": random_text(draw)}]) for _ in range(3)]
            messages.append({"role": role, "content": items})
            parts = [part for item in items for part in ([None, "\n"] if "text" not in item else [item["text"]])]
            turns.append(Turn(role, tuple(parts)))
        awaits = draw.random() < 0.5
        text = templates[system].render(messages=messages, bos_token="<s>", add_generation_prompt=awaits)
        assert text == "<s>" + style.write(turns, system, awaits)
    assert rendered(style.chat_template(writes_bos=False), [], bos_token="<s>") == style.write([], awaits_answer=False)


def test_what_a_chat_template_refuses():
    template = prompt_format("internvl_zh").chat_template()
    with pytest.raises(TemplateError, match="tool is no role of the prompt format internvl_zh; expected system, user"):
        rendered(template, [{"role": "tool", "content": "x"}])
    with pytest.raises(TemplateError, match="content of type audio; expected text, image or video"):
        rendered(template, [{"role": "user", "content": [{"type": "audio"}]}])


@pytest.mark.parametrize("folder", [".", "tiny"])
def test_the_template_files_are_the_formats(folder):
    written = (ROOT / folder / "chat_template.jinja").read_text("utf-8")
    assert written == prompt_format("internlm2-chat").chat_template()


@pytest.mark.parametrize("name", PROMPT_FORMATS)
def test_no_control_token_forms_where_a_formats_text_meets_other_text(name):
    """What a format writes beside text neither begins nor ends in the middle of a control token."""
    style = prompt_format(name)
    texts = [text for role in style.turns for text in style.around(role)] + ["\n", style.frame.format(1)]
    for token in CONTROL_TOKENS:
        parts = range(1, len(token))
        for text in texts:
            assert not any(text.endswith(token[:cut]) for cut in parts), (text, token)
            assert not any(text.startswith(token[cut:]) for cut in parts), (text, token)
