"""The Gradio page: what is on it and what happens when something is dropped, asked or pressed."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from examples.demo.conversation import RESOLUTIONS, Conversation
from examples.demo.drawing import draw_tiles
from examples.demo.limits import MAX_QUESTION, Conversations
from examples.demo.words import WORDS


ROOT = Path(__file__).resolve().parent.parent.parent
SHAPES, SIGN, RECEIPT = (ROOT / "examples" / f"{name}.png" for name in ("shapes", "sign", "receipt"))
EXAMPLES = (
    (SHAPES, "What colour is the circle?"),
    (SHAPES, "Give the box of <ref>orange star</ref>"),
    (SHAPES, "图中的五角星是什么颜色？"),
    (SIGN, "What does the blue text say?"),
    (SIGN, "红色的文字写的是什么？"),
    (RECEIPT, "What is the total?"),
)
# Drawn pictures keep their proportions, with the caption below instead of on them.
CSS = """
#language {flex: none; width: auto}
#tiles .grid-wrap {min-height: 0}
#tiles .grid-container {align-items: start; padding-top: 2rem}
#tiles .thumbnail-item {aspect-ratio: auto; height: auto}
#tiles .thumbnail-item img {height: auto}
#tiles .caption-label {position: static; max-width: 100%; white-space: normal; border: 0; box-shadow: none}
"""


class Page:
    """The page for one model. Each browser tab has a conversation of its own, which ends when the tab is closed.

    Args:
        model: The model.
        processor: Its processor, with a policy for uploads.
        name: What the page says of the model.
        examples: The folder with the files of the examples.
    """

    def __init__(self, model: Any, processor: Any, name: str, examples: Path = ROOT / "examples") -> None:
        self._model, self._processor, self._name, self._examples = model, processor, name, examples
        self.conversations = Conversations()

    def build(self, **options: Any) -> gr.Blocks:
        """Put the page together; options are those of Gradio's Blocks."""
        words = WORDS["en"]
        with gr.Blocks(title="InternVL 1.5", analytics_enabled=False, **options) as page:
            with gr.Row(equal_height=True):
                with gr.Column(scale=5):
                    gr.Markdown(f"# InternVL 1.5 · {self._name}")
                    intro = gr.Markdown(words["intro"])
                language = gr.Radio(
                    [("English", "en"), ("中文", "zh")],
                    value="en",
                    show_label=False,
                    container=False,
                    elem_id="language",
                )
            with gr.Row():
                with gr.Column(scale=4):
                    files = gr.File(
                        label=words["files"], file_count="multiple", file_types=["image"], height=140, elem_id="files"
                    )
                    resolution = gr.Radio(
                        self._resolutions("en"), value="auto", label=words["resolution"], elem_id="resolution"
                    )
                    tiles = gr.Gallery(
                        label=words["tiles"], columns=2, object_fit="contain", height="auto", elem_id="tiles"
                    )
                    total = gr.Markdown(words["none"], elem_id="total")
                with gr.Column(scale=5):
                    chat = gr.Chatbot(label=words["chat"], height=640, buttons=["copy"], elem_id="chat")
                    question = gr.Textbox(
                        label=words["question"],
                        placeholder=words["question"],
                        submit_btn=words["ask"],
                        show_label=False,
                        elem_id="question",
                        max_length=MAX_QUESTION,
                    )
                    new = gr.Button(words["new"], elem_id="new")
            gr.Examples(
                [[[str(self._examples / path.name)], text] for path, text in EXAMPLES],
                [files, question],
                label=f"{words['examples']} · {WORDS['zh']['examples']}",
                elem_id="examples",
            )

            gr.on(
                [files.change, resolution.change, chat.clear, new.click],
                self.start,
                [files, resolution, language],
                [tiles, total, chat],
            )
            language.change(
                self.translate,
                language,
                [intro, files, resolution, tiles, total, chat, question, new],
                show_progress="hidden",
            )
            question.submit(self.answer, [question, chat, files, resolution, language], [question, chat])
            question.stop(self.stop, queue=False)
            page.load(self.greet, None, language, show_progress="hidden")
            page.unload(self.leave)
        return page

    def greet(self, request: gr.Request) -> str:
        """Choose the language that the browser asks for."""
        return "zh" if request.headers.get("accept-language", "").lower().startswith("zh") else "en"

    def start(self, paths: list[str] | None, resolution: str, language: str, request: gr.Request) -> tuple[Any, ...]:
        """Begin a conversation about the pictures that are there; one that went on before ends."""
        conversation = self._conversation(paths, resolution, language, request)
        return *self._sight(conversation, language), []

    def answer(
        self,
        question: str,
        chat: list[dict[str, Any]],
        paths: list[str] | None,
        resolution: str,
        language: str,
        request: gr.Request,
    ) -> Iterator[tuple[Any, ...]]:
        """Ask, and show the answer while it grows."""
        words = WORDS[language]
        if not question.strip():
            gr.Warning(words["empty"])
            yield gr.skip(), gr.skip()
            return
        conversation = self.conversations.get(request.session_hash)
        if conversation is None:  # the tab was taken for closed, or nothing was dropped
            conversation = self._conversation(paths, resolution, language, request)
        asked = [*chat, {"role": "user", "content": show_tags(question)}]
        shown, answer = asked, ""
        yield gr.update(value="", submit_btn=False, stop_btn=words["stop"]), shown
        try:
            for answer in conversation.ask(question):
                shown = [*asked, {"role": "assistant", "content": show_tags(answer)}]
                yield gr.skip(), shown
        except (OSError, RuntimeError, ValueError) as error:  # PyTorch's lack of memory is a RuntimeError
            gr.Warning(words["failed"].format(error=error))
            yield gr.update(value=question, submit_btn=words["ask"], stop_btn=False), chat
            return
        drawn = conversation.draw_boxes(question, answer)
        if drawn is not None:
            shown = [
                *shown,
                {"role": "assistant", "content": gr.Image(drawn, show_label=False, buttons=["fullscreen"])},
            ]
        yield gr.update(submit_btn=words["ask"], stop_btn=False), shown

    def stop(self, request: gr.Request) -> None:
        """End the answer that this tab is getting."""
        if (conversation := self.conversations.get(request.session_hash)) is not None:
            conversation.stop()

    def leave(self, request: gr.Request) -> None:
        """End the tab's conversation."""
        self.conversations.end(request.session_hash)

    def translate(self, language: str, request: gr.Request) -> tuple[Any, ...]:
        """Say everything in another language; the conversation goes on."""
        words = WORDS[language]
        tiles, total = self._sight(self.conversations.get(request.session_hash), language)
        return (
            words["intro"],
            gr.update(label=words["files"]),
            gr.update(label=words["resolution"], choices=self._resolutions(language)),
            gr.update(label=words["tiles"], value=tiles),
            total,
            gr.update(label=words["chat"]),
            gr.update(placeholder=words["question"], submit_btn=words["ask"]),
            gr.update(value=words["new"]),
        )

    def _resolutions(self, language: str) -> list[tuple[str, str]]:
        limits = {name: self._processor.image_processor.tile_limits(1, resolution=name)[0] for name in RESOLUTIONS}
        return [(WORDS[language][name].format(limit), name) for name, limit in limits.items()]

    def _conversation(
        self, paths: list[str] | None, resolution: str, language: str, request: gr.Request
    ) -> Conversation:
        """Start the tab's conversation and say which pictures cannot be read."""
        self.conversations.end(request.session_hash)
        conversation = Conversation(self._model, self._processor, paths or (), resolution)
        self.conversations.start(request.session_hash, conversation)
        for name, error in conversation.broken.items():
            gr.Warning(WORDS[language]["broken"].format(name=name, error=error))
        return conversation

    def _sight(self, conversation: Conversation | None, language: str) -> tuple[list[tuple[Any, str]], str]:
        """Return the drawn tiles with their captions, and the sum of tokens."""
        words = WORDS[language]
        if conversation is None or not conversation.pictures:
            return [], words["none"]
        shown = []
        for picture in conversation.pictures:
            plan, tokens = picture.plan, picture.tile_tokens
            grid = {"columns": plan.columns, "rows": plan.rows, "tokens": plan.columns * plan.rows * tokens}
            shown.append((draw_tiles(picture.image, plan), words["grid"].format(name=picture.name, **grid)))
            if plan.has_thumbnail:
                thumbnail = picture.image.resize((plan.tile_size, plan.tile_size))
                shown.append((thumbnail, words["thumbnail"].format(tokens=tokens)))
        tiles = sum(picture.plan.num_tiles for picture in conversation.pictures)
        tile_tokens = conversation.pictures[0].tile_tokens
        total = words["total"].format(
            tokens=tiles * tile_tokens, pictures=len(conversation.pictures), tiles=tiles, tile_tokens=tile_tokens
        )
        return shown, total


def show_tags(text: str) -> str:
    """Write grounding tags so that a browser shows them instead of taking them for HTML."""
    return re.sub(r"<(/?(?:ref|box|quad|image))>", r"&lt;\1&gt;", text)
