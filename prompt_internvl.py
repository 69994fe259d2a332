"""The conversation as text: prompt formats, guarding what users type, places for pictures, encoding and decoding.

A prompt is one string, written as the model was trained to read it. Where a user typed the text of a control token,
the prompt is cut inside it before tokenization, so that it stays text. No tensors here.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase


IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER = "<image>", "<video>"
IMAGE_START_TOKEN, IMAGE_END_TOKEN, IMAGE_CONTEXT_TOKEN = "<img>", "</img>", "<IMG_CONTEXT>"
# Tags that both people and the model write: grounding questions use <ref>, answers use all of them.
GROUNDING_TAGS = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>")
# Pieces of the published SentencePiece model that are the control tokens under their first names.
UNUSED_TOKEN = r"\[UNUSED_TOKEN_\d+\]"
# A character that no text holds (Unicode noncharacter); prompts are cut at it.
CUT = "\ufdd0"

INTERNVL_SYSTEM_MESSAGE = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
)
INTERNVL2_5_SYSTEM_MESSAGE = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)

History = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class PromptFormat:
    """How a conversation is written for a language model.

    Attributes:
        user: What stands before a question.
        assistant: What stands before an answer.
        system: The system part, with `{}` for the system message.
        system_message: The system message that the model was trained with.
        stop: The token that ends an answer.
        question_end: What follows a question.
        answer_end: What follows an answer.
        answer_space: What stands between `assistant` and an answer that is already there.
    """

    user: str
    assistant: str
    system: str
    system_message: str
    stop: str
    question_end: str
    answer_end: str
    answer_space: str = ""

    def render(self, history: History, question: str, system_message: str) -> str:
        """Write a conversation that ends where the model answers `question`."""
        turns = "".join(
            f"{self.user}{old_question}{self.question_end}{self.assistant}{self.answer_space}{answer}{self.answer_end}"
            for old_question, answer in history
        )
        return f"{self.system.format(system_message)}{turns}{self.user}{question}{self.question_end}{self.assistant}"


def _turn_format(role: str, stop: str, end: str, system_message: str) -> PromptFormat:
    return PromptFormat(
        user=role.format("user"),
        assistant=role.format("assistant"),
        system=role.format("system") + "{}" + end,
        system_message=system_message,
        stop=stop,
        question_end=end,
        answer_end=end,
    )


_CHATML = _turn_format("<|im_start|>{}\n", "<|im_end|>", "<|im_end|>", INTERNVL_SYSTEM_MESSAGE)
PROMPT_FORMATS = {
    "internlm2-chat": _CHATML,
    "Hermes-2": _CHATML,
    "phi3-chat": _turn_format("<|{}|>\n", "<|end|>", "<|end|>", INTERNVL_SYSTEM_MESSAGE),
    "internvl2_5": _turn_format("<|im_start|>{}\n", "<|im_end|>", "<|im_end|>\n", INTERNVL2_5_SYSTEM_MESSAGE),
    "internvl_zh": PromptFormat(
        user="<human>: ",
        assistant="<bot>:",
        system="{} ",
        system_message="",
        stop="</s>",
        question_end=" ",
        answer_end="</s>",
        answer_space=" ",
    ),
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


def guard_text(tokenizer: PreTrainedTokenizerBase, text: str, *, also: Sequence[str] = ()) -> str:
    """Mark where `text` must be cut so that no control token typed in it comes to life; grounding tags may.

    Args:
        tokenizer: The tokenizer whose special and added tokens are looked for.
        text: What somebody typed.
        also: Further words that must stay text.

    Returns:
        The text with `CUT` inside each control token; the very same text where there is none.

    Raises:
        TypeError: If the tokenizer is none.
    """
    if not hasattr(tokenizer, "added_tokens_decoder"):
        raise TypeError(
            f"tokenizer is of type {type(tokenizer).__name__}; expected the checkpoint's tokenizer, which a processor "
            "has as processor.tokenizer."
        )
    tokens = {*map(str, tokenizer.added_tokens_decoder.values()), *tokenizer.all_special_tokens, *also}
    control = sorted(map(re.escape, tokens - {*GROUNDING_TAGS, ""}))
    pattern = f"(?=({'|'.join([UNUSED_TOKEN, *control])}))(.)"
    return re.sub(pattern, lambda match: match[2] + CUT, text.replace(CUT, ""), flags=re.DOTALL)


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str, add_special_tokens: bool = True) -> list[int]:
    """Tokenize a prompt, cut where `guard_text` says; without a cut this is `tokenizer(prompt).input_ids`.

    A prompt that spells out the first token, as chat templates do, does not get it twice.
    """
    first, *others = prompt.split(CUT)
    has_bos = bool(tokenizer.bos_token) and first.startswith(tokenizer.bos_token)
    ids = list(tokenizer(first, add_special_tokens=add_special_tokens and not has_bos).input_ids)
    for part in others:
        ids += tokenizer(part, add_special_tokens=False).input_ids
    return ids


def decode_answer(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], stop: str = "") -> str:
    """Turn generated tokens into text: grounding tags stay, other special tokens go, and nothing follows `stop`."""
    tags = {tokenizer.convert_tokens_to_ids(tag): tag for tag in GROUNDING_TAGS}
    for missing in (None, tokenizer.unk_token_id):
        tags.pop(missing, None)
    text, start = "", 0
    for index, token_id in enumerate([*token_ids, None]):
        if token_id is None or token_id in tags:
            text += tokenizer.decode(token_ids[start:index], skip_special_tokens=True) + tags.get(token_id, "")
            start = index + 1
    return text.split(stop)[0] if stop else text


def place_images(
    history: History, question: str, num_tiles: Sequence[int], tile_tokens: int
) -> tuple[list[tuple[str, str]], str]:
    """Replace each `<image>` of the user's turns, in order, by the places of its tiles.

    Args:
        history: Earlier questions and answers; an answer's `<image>` is text.
        question: The new question.
        num_tiles: Tiles of each picture, thumbnail included.
        tile_tokens: Image tokens of one tile.

    Returns:
        History and question with the places in them.

    Raises:
        ValueError: If there are more or fewer `<image>` than pictures.
    """
    questions = [old_question for old_question, _ in history] + [question]
    found = sum(text.count(IMAGE_PLACEHOLDER) for text in questions)
    if found != len(num_tiles):
        raise ValueError(
            f"The conversation has {found} {IMAGE_PLACEHOLDER} for {len(num_tiles)} picture(s) of {list(num_tiles)} "
            f"tiles. Write {IMAGE_PLACEHOLDER} once for each picture where it stands; num_patches_list of chat() says "
            "how many tiles each picture has."
        )
    tiles = iter(num_tiles)
    placed = [
        re.sub(
            re.escape(IMAGE_PLACEHOLDER),
            lambda _: IMAGE_START_TOKEN + IMAGE_CONTEXT_TOKEN * tile_tokens * next(tiles) + IMAGE_END_TOKEN,
            text,
        )
        for text in questions
    ]
    return [(text, answer) for text, (_, answer) in zip(placed, history, strict=False)], placed[-1]
