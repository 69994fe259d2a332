"""The prompt formats of the family: one table that writes conversations as text and as Jinja chat templates.

Nothing here knows a tokenizer; control tokens are the words that give these prompts their structure.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER = "<image>", "<video>"
IMAGE_START_TOKEN, IMAGE_END_TOKEN, IMAGE_CONTEXT_TOKEN = IMAGE_TOKENS = ("<img>", "</img>", "<IMG_CONTEXT>")

# The tokens that give prompts of the family's language models their structure. Every other added token, such as a
# grounding tag, `<think>` or a developer's own, is vocabulary: it is encoded as one token wherever it is written.
CONTROL_TOKENS = frozenset(
    IMAGE_TOKENS
    + ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|startoftext|>", "<s>", "</s>", "<unk>", "<pad>")
    + ("<|action_start|>", "<|action_end|>", "<|interpreter|>", "<|plugin|>")  # InternLM2
    + ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|placeholder|>")  # Phi-3
    + ("<|tool|>", "<|/tool|>", "<|tool_call|>", "<|/tool_call|>", "<|tool_response|>")
    + ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")  # Qwen
    + ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>")
    + ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
    + ("<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>")
    + ("<|start|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|return|>", "<|call|>", "<|endofprompt|>")  # OSS
    + ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>")  # Llama 3
    + ("<|eot_id|>", "<|eom_id|>", "<|python_tag|>", "<|finetune_right_pad_id|>")
)
NUMBERED_CONTROL_TOKEN = re.compile(r"<\|(?:placeholder|reserved_|reserved_special_token_)\d+\|>")
# Pieces of InternLM2's published vocabulary, which hold the control tokens under their first names.
UNUSED_TOKEN = r"\[UNUSED_TOKEN_\d+\]"
ROLE_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")

ROLES = ("system", "user", "assistant", "tool")

INTERNVL_SYSTEM_MESSAGE = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
)
INTERNVL2_5_SYSTEM_MESSAGE = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)
GPT_OSS_SYSTEM_MESSAGE = (
    "You are InternVL, a large language model trained by Shanghai AI Laboratory.\nKnowledge cutoff: 2024-06\n"
    "Current date: 2025-08-06\n\nReasoning: low\n\n"
    "# Valid channels: final. Channel must be included for every message."
)

THINKING_SYSTEM_MESSAGE = """\
You are an AI assistant that rigorously follows this response protocol:

1. First, conduct a detailed analysis of the question. Consider different angles, potential solutions, and reason \
through the problem step-by-step. Enclose this entire thinking process within <think> and </think> tags.

2. After the thinking section, provide a clear, concise, and direct answer to the user's question. Separate the \
answer from the think section with a newline.

Ensure that the thinking process is thorough but remains focused on the query. The final answer should be standalone \
and not reference the thinking section."""


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation.

    Attributes:
        role: system, user, assistant or tool.
        parts: Its text in order; None where an image stands.
        is_learned: Whether its ids are a piece of their own, with the token that ends the answer.
    """

    role: str
    parts: tuple[str | None, ...]
    is_learned: bool = False


@dataclass(frozen=True)
class PromptFormat:
    """How a conversation is written for a language model.

    Attributes:
        name: The official name, `config.template`.
        turns: For each role what stands before and after its text.
        system_message: The system message that the model was trained with.
        stop: The token that ends an answer.
        answer_space: What stands between the start of an answer's turn and an answer that is already there.
        frame: What stands before a frame of a video, with `{}` for its number from 1.
        answer_header: What the model itself writes before its answer, and decoding removes.
        thinking_message: The system message by which InternVL3.5 thinks before it answers, between `<think>` and
            `</think>`; empty in formats of generations that were not trained for it.
    """

    name: str
    turns: Mapping[str, tuple[str, str]]
    system_message: str
    stop: str
    answer_space: str = ""
    frame: str = "Frame{}: "
    answer_header: str = ""
    thinking_message: str = ""

    @property
    def sep(self) -> str:
        """`stop`, under the name by which the official card's streaming recipe asks `model.conv_template` for it."""
        return self.stop

    @property
    def answer_start(self) -> str:
        """What stands before an answer that the model is to give."""
        return self.turns["assistant"][0]

    def around(self, role: str) -> tuple[str, str]:
        """Return what stands before and after a turn.

        Raises:
            ValueError: If the format has no such role.
        """
        if role not in self.turns:
            raise ValueError(
                f"A message has the role {role!r}; the prompt format {self.name} has only {', '.join(self.turns)}."
            )
        before, after = self.turns[role]
        return (before + self.answer_space if role == "assistant" else before), after

    def write(self, turns: Iterable[Turn], system: str | None = None, awaits_answer: bool = True) -> str:
        """Write a conversation as text, `<image>` for each image: what the chat template writes, without first token.

        Args:
            turns: The turns; a first turn of the system takes the place of `system`.
            system: System message; None means the trained one.
            awaits_answer: Whether the model's answer comes next.

        Returns:
            The text, in which nothing is guarded.
        """
        texts = []
        for turn in self.with_system(turns, system):
            before, after = self.around(turn.role)
            inside = (IMAGE_PLACEHOLDER if part is None else part for part in turn.parts)
            texts.append(f"{before}{''.join(inside)}{after}")
        return "".join(texts) + (self.answer_start if awaits_answer else "")

    def with_system(self, turns: Iterable[Turn], system: str | None = None) -> list[Turn]:
        """Return the turns with a first turn of the system."""
        turns = list(turns)
        if turns and turns[0].role == "system":
            return turns
        return [Turn("system", (self.system_message if system is None else system,)), *turns]

    def chat_template(
        self, system_message: str | None = None, writes_bos: bool = True, marks_answers: bool = False
    ) -> str:
        """Write the format as a Jinja chat template.

        Args:
            system_message: System message of conversations without one; None means the trained one.
            writes_bos: Whether it begins with the tokenizer's first token.
            marks_answers: Whether what is learned of an answer stands in `{% generation %}`, which TRL's
                `assistant_only_loss` looks for. Other Jinja than Transformers' refuses this tag.

        Returns:
            The template, which writes what `write` writes.
        """
        system = self.system_message if system_message is None else system_message
        before, after = self.around("system")
        unknown = f"' is no role of the prompt format {self.name}; expected {', '.join(self.turns)}.'"
        lines = [f"{{#- InternVL prompt format {self.name} -#}}"]
        lines += ["{{- bos_token -}}"] if writes_bos else []
        lines += [
            "{%- if not messages or messages[0]['role'] != 'system' -%}",
            f"{{{{- {_quoted(before + system + after)} -}}}}",
            "{%- endif -%}",
            "{%- for message in messages -%}",
            *(self._jinja_marked_answer() if marks_answers else []),
            *self._jinja_by_role(0),
            f"{{%- else -%}}{{{{- raise_exception(message['role'] + {unknown}) -}}}}",
            "{%- endif -%}",
            JINJA_CONTENT,
            *self._jinja_by_role(1),
            "{%- endif -%}",
            *(["{%- endif -%}"] if marks_answers else []),
            "{%- endfor -%}",
            "{%- if add_generation_prompt -%}",
            f"{{{{- {_quoted(self.answer_start)} -}}}}",
            "{%- endif -%}",
        ]
        return "\n".join(lines)

    def _jinja_marked_answer(self) -> list[str]:
        """Write an answer, marked where the collator learns it, and begin the case of all other messages."""
        before, after = self.turns["assistant"]
        stop = self.stop if after.startswith(self.stop) else ""
        return [
            f"{{%- if message['role'] == 'assistant' -%}}{{{{- {_quoted(before)} -}}}}",
            f"{{%- generation -%}}{{{{- {_quoted(self.answer_space)} -}}}}",
            JINJA_CONTENT,
            f"{{{{- {_quoted(stop)} -}}}}{{%- endgeneration -%}}{{{{- {_quoted(after.removeprefix(stop))} -}}}}",
            "{%- else -%}",
        ]

    def _jinja_by_role(self, side: int) -> list[str]:
        """Write what stands before (0) or after (1) a message, by its role."""
        lines: list[str] = []
        for role in self.turns:
            condition = f"{'elif' if lines else 'if'} message['role'] == '{role}'"
            lines.append(f"{{%- {condition} -%}}{{{{- {_quoted(self.around(role)[side])} -}}}}")
        return lines


JINJA_CONTENT = """\
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for item in message['content'] -%}
{%- if item['type'] == 'image' -%}
{{- '<image>\\n' -}}
{%- elif item['type'] == 'video' -%}
{{- '<video>\\n' -}}
{%- elif item['type'] == 'text' -%}
{{- item['text'] -}}
{%- else -%}
{{- raise_exception('A message has content of type ' + item['type'] + '; expected text, image or video.') -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}"""


def _quoted(text: str) -> str:
    """Write a Jinja string literal: JSON's escapes are Jinja's."""
    return json.dumps(text, ensure_ascii=False)


def _by_roles(before: str, after: str, roles: Sequence[str] = ROLES) -> dict[str, tuple[str, str]]:
    return {role: (before.format(role), after) for role in roles}


_CHATML = _by_roles("<|im_start|>{}\n", "<|im_end|>")
_CHATML_LINES = _by_roles("<|im_start|>{}\n", "<|im_end|>\n")
_PHI3 = _by_roles("<|{}|>\n", "<|end|>", ROLES[:3])
_GPT_OSS = _by_roles("<|start|>{}<|message|>", "<|end|>") | {"assistant": ("<|start|>assistant", "<|end|>")}
_ZH = {"system": ("", " "), "user": ("<human>: ", " "), "assistant": ("<bot>:", "</s>")}
PROMPT_FORMATS = {
    prompt_format.name: prompt_format
    for prompt_format in (
        PromptFormat("internlm2-chat", _CHATML, INTERNVL_SYSTEM_MESSAGE, "<|im_end|>"),
        PromptFormat("Hermes-2", _CHATML, INTERNVL_SYSTEM_MESSAGE, "<|im_end|>"),
        PromptFormat("phi3-chat", _PHI3, INTERNVL_SYSTEM_MESSAGE, "<|end|>"),
        PromptFormat(
            "internvl2_5",
            _CHATML_LINES,
            INTERNVL2_5_SYSTEM_MESSAGE,
            "<|im_end|>",
            frame="Frame-{}: ",
            thinking_message=THINKING_SYSTEM_MESSAGE,
        ),
        PromptFormat(
            "internvl3_5_gpt_oss",
            _GPT_OSS,
            GPT_OSS_SYSTEM_MESSAGE,
            "<|return|>",
            frame="Frame-{}: ",
            answer_header="<|channel|>final<|message|>",
            thinking_message=THINKING_SYSTEM_MESSAGE,
        ),
        PromptFormat("internvl_zh", _ZH, "", "</s>", answer_space=" "),
    )
}


def prompt_format(template: str) -> PromptFormat:
    """Return the prompt format of an official `template` name.

    Raises:
        ValueError: If the name is unknown.
    """
    if template not in PROMPT_FORMATS:
        raise ValueError(
            f"template is {template!r}; known are {', '.join(map(repr, PROMPT_FORMATS))}. Set config.template."
        )
    return PROMPT_FORMATS[template]
