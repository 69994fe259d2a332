"""A session gives `chat`'s answers and reads nothing twice."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from internvl_chat.configuration_internvl_chat import InternVLChatConfig
from internvl_chat.modeling_internvl_chat import InternVLChatModel
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer


SHORT = {"max_new_tokens": 8, "do_sample": False}
QUESTIONS = ("What is in the image?", "And what else?", "好的，谢谢。")
TILE_TOKENS = 16  # of c01


class Counts:
    """Counts what a model reads: tiles, and tokens per step."""

    def __init__(self, model):
        self.tiles, self.steps = 0, []
        self.hooks = [
            model.vision_model.register_forward_pre_hook(self.see),
            model.language_model.register_forward_pre_hook(self.read, with_kwargs=True),
        ]

    def see(self, module, args):
        self.tiles += len(args[0])

    def read(self, module, args, kwargs):
        embeds = kwargs.get("inputs_embeds")
        self.steps.append((kwargs["input_ids"] if embeds is None else embeds).shape[1])

    def take(self):
        """Return tiles seen, tokens read at the first step, and whether all other steps read one; then start anew."""
        taken = self.tiles, self.steps[0], set(self.steps[1:]) <= {1}
        self.tiles, self.steps = 0, []
        return taken


@pytest.fixture
def counted():
    """Count what models read, until the test ends."""
    counts = []

    def count(model):
        counts.append(Counts(model))
        return counts[-1]

    yield count
    for one in counts:
        for hook in one.hooks:
            hook.remove()


@pytest.fixture(scope="module")
def model(golden_model):
    return golden_model("c01_v15_26b")


@pytest.fixture(scope="module")
def tiles(golden_case):
    return golden_case("c11_chat_history")[0]["pixel_values"]


@pytest.mark.parametrize("case", ["c01_v15_26b", "c02_mini_2b", "c05_v12_llama", "c06_qwen2"])
def test_answers_are_those_of_chat_and_nothing_is_read_twice(case, golden_model, golden_case, tokenizer, counted):
    model, tiles = golden_model(case), golden_case(case)[0]["pixel_values"]
    counts = counted(model)
    with model.start_chat(tokenizer, tiles, SHORT) as session:
        assert counts.tiles == len(tiles)
        counts.tiles, total, history = 0, 0, None
        for turn, question in enumerate(QUESTIONS):
            answer = session.chat(question)
            seen, read, one_by_one = counts.take()
            expected, history = model.chat(tokenizer, tiles, question, SHORT, history=history, return_history=True)
            _, whole, _ = counts.take()
            assert answer == expected
            assert session.history == history
            assert seen == 0
            assert one_by_one
            # The new turn, and at most the last answer where it is written otherwise than it was said.
            assert read == whole if turn == 0 else read <= whole - total
            total = whole


def test_the_second_turn_reads_the_second_turn_alone(model, tokenizer, tiles, counted):
    counts = counted(model)
    session = model.start_chat(tokenizer, tiles, {"max_new_tokens": 1, "do_sample": False})
    session.chat("Hi")
    assert counts.take() == (5, len(session._cached), True)
    answer = len(tokenizer(session.history[0][1], add_special_tokens=False).input_ids)
    session.chat("Hi")
    text = "<|im_end|><|im_start|>user\nHi<|im_end|><|im_start|>assistant\n"
    new = len(tokenizer(text, add_special_tokens=False).input_ids)
    assert counts.take() == (0, answer + new, True)


def test_sampling_with_the_same_seed(model, tokenizer, tiles):
    options, history = {"max_new_tokens": 8, "do_sample": True, "temperature": 0.7, "top_p": 0.9}, None
    session = model.start_chat(tokenizer, tiles, options)
    for seed, question in enumerate(QUESTIONS):
        torch.manual_seed(seed)
        answer = session.chat(question)
        torch.manual_seed(seed)
        expected, history = model.chat(tokenizer, tiles, question, options, history=history, return_history=True)
        assert answer == expected


def test_images_come_with_any_turn(model, tokenizer, tiles, counted):
    counts = counted(model)
    session = model.start_chat(tokenizer, generation_config=SHORT)
    session.chat("Hello")
    session.chat("What is it?", tiles[:2])
    assert session.history[1][0] == "<image>\nWhat is it?"
    counts.take()
    handle = model.encode_images(tiles[2:], [2, 1])
    counts.tiles = 0
    answer = session.chat("Compare <image> with <image>.", handle)
    seen, read, _ = counts.take()
    assert seen == 0
    assert 3 * TILE_TOKENS < read < 3 * TILE_TOKENS + 60
    assert answer == model.chat(
        tokenizer,
        tiles,
        "Compare <image> with <image>.",
        SHORT,
        history=session.history[:2],
        num_patches_list=[2, 2, 1],
    )
    regrouped = model.start_chat(tokenizer, model.encode_images(tiles), SHORT, num_patches_list=[3, 2])
    question = "<image> or <image>?"
    assert regrouped.chat(question) == model.chat(tokenizer, tiles, question, SHORT, num_patches_list=[3, 2])


def test_edited_history_is_cut_where_it_differs(model, tokenizer, tiles, counted):
    session = model.start_chat(tokenizer, tiles, SHORT)
    for question in QUESTIONS:
        session.chat(question)
    session.history[1] = ("Another question", "and answer")
    counts = counted(model)
    answer = session.chat("So?")
    seen, read, _ = counts.take()
    assert answer == model.chat(tokenizer, tiles, "So?", SHORT, history=session.history[:3])
    _, whole, _ = counts.take()
    assert seen == 0
    assert read < whole - 5 * TILE_TOKENS


def test_retry_and_rewind(model, tokenizer, tiles, counted):
    session = model.start_chat(tokenizer, tiles, SHORT)
    first = session.chat(QUESTIONS[0])
    counts = counted(model)
    assert session.retry() == first
    assert counts.take() == (0, 1, True)
    assert len(session.history) == 1
    edited = session.retry("Describe the image.")
    seen, read, _ = counts.take()
    assert seen == 0
    assert read < 30
    assert session.history == [("<image>\nDescribe the image.", edited)]
    assert edited == model.chat(tokenizer, tiles, "Describe the image.", SHORT)
    second = session.chat(QUESTIONS[1], tiles[:1])
    assert len(session.images) == 2
    session.rewind()
    assert (len(session.history), len(session.images)) == (1, 1)
    assert session.chat(QUESTIONS[1], tiles[:1]) == second
    session.rewind(2)
    assert session.history == session.images == []
    assert session.chat("Hello") == model.chat(tokenizer, None, "Hello", SHORT)


def test_another_image_of_the_same_size_is_another_image(model, tokenizer, tiles, counted):
    session = model.start_chat(tokenizer, tiles[:2], SHORT)
    session.chat(QUESTIONS[0])
    session.images[0] = model.encode_images(tiles[2:4])
    assert session.retry() == model.chat(tokenizer, tiles[2:4], QUESTIONS[0], SHORT)


def test_stream(model, tokenizer, tiles):
    session = model.start_chat(tokenizer, tiles)
    pieces = list(session.stream(QUESTIONS[0], SHORT))
    assert len(pieces) > 1
    assert "".join(pieces) == session.history[0][1] == model.chat(tokenizer, tiles, QUESTIONS[0], SHORT)


def test_a_closed_stream_leaves_what_was_said(model, tokenizer, tiles):
    session = model.start_chat(tokenizer, tiles, {"max_new_tokens": 500, "do_sample": False})
    stream = session.stream(QUESTIONS[0])
    said = next(stream)
    stream.close()
    assert session.history[0][1].startswith(said.strip())
    assert len(session._cached) < 5 * TILE_TOKENS + 400
    session.generation_config = SHORT
    assert session.chat("Go on") == model.chat(tokenizer, tiles, "Go on", SHORT, history=session.history[:1])


def test_beyond_the_limit_of_dynamic_rope_everything_is_read_anew(golden_model, tokenizer, counted):
    """There each length has its own angles, so a kept cache would give other numbers."""
    model = golden_model("c01_v15_26b", fresh=True)
    assert model.config.llm_config.rope_type == "dynamic"
    model.language_model.config.max_position_embeddings = model.config.llm_config.max_position_embeddings = 48
    session, history, counts = model.start_chat(tokenizer, None, SHORT, system="."), None, counted(model)
    lengths = []
    for question in ("Hello", "And now?", "A longer question that ends beyond the limit.", "Go on"):
        answer = session.chat(question)
        _, read, _ = counts.take()
        expected, history = model.chat(
            tokenizer, None, question, SHORT, history=history, return_history=True, system="."
        )
        assert answer == expected
        _, whole, _ = counts.take()
        lengths.append((whole > 48, read == whole))
    assert lengths == [(False, True), (False, False), (True, True), (True, True)]
    assert session._cache is None
    session.rewind(2)
    assert session.chat("Go on") == model.chat(tokenizer, None, "Go on", SHORT, history=history[:2], system=".")


def test_sliding_window(goldens, golden_case, tokenizer):
    """A cache that forgets cannot be cut back; a session's keeps everything."""
    folder = goldens / "c06_qwen2" / "checkpoint"
    config = InternVLChatConfig.from_pretrained(folder).to_dict()
    del config["llm_config"]["layer_types"]
    config["llm_config"] |= {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 0}
    model = InternVLChatModel.from_pretrained(folder, config=InternVLChatConfig(**config), dtype=torch.float32)
    assert set(model.language_model.config.layer_types) == {"sliding_attention"}
    tiles, history = golden_case("c06_qwen2")[0]["pixel_values"], None
    session = model.start_chat(tokenizer, tiles, SHORT)
    for question in QUESTIONS:
        answer, history = model.chat(tokenizer, tiles, question, SHORT, history=history, return_history=True)
        assert session.chat(question) == answer
    assert session.retry() == answer


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 2},
        {"do_sample": True, "num_return_sequences": 2},
        {"use_cache": False},
        {"cache_implementation": "static"},
    ],
)
def test_options_that_need_another_cache(model, tokenizer, tiles, options):
    options = {**SHORT, **options}
    session = model.start_chat(tokenizer, tiles, SHORT)
    first = session.chat(QUESTIONS[0])
    kept = len(session._cached)
    torch.manual_seed(0)
    answer = session.chat(QUESTIONS[1], generation_config=options)
    torch.manual_seed(0)
    history = [(f"<image>\n{QUESTIONS[0]}", first)]
    assert answer == model.chat(tokenizer, tiles, QUESTIONS[1], options, history=history)
    assert len(session._cached) == kept
    assert session.chat(QUESTIONS[2]) == model.chat(tokenizer, tiles, QUESTIONS[2], SHORT, history=session.history[:2])


def test_options_as_an_object(model, tokenizer, tiles):
    session = model.start_chat(tokenizer, tiles, GenerationConfig(**SHORT))
    assert session.chat(QUESTIONS[0]) == model.chat(tokenizer, tiles, QUESTIONS[0], SHORT)
    assert len(session._cached) > 5 * TILE_TOKENS
    session.chat(QUESTIONS[1], generation_config=GenerationConfig(num_beams=2, **SHORT))


def test_system_message(model, tokenizer):
    session = model.start_chat(tokenizer, None, SHORT, system="You are a poet.")
    assert session.chat("Hello") == model.chat(tokenizer, None, "Hello", SHORT, system="You are a poet.")


def test_close_frees_and_ends(model, tokenizer, tiles):
    with model.start_chat(tokenizer, tiles, SHORT) as session:
        session.chat(QUESTIONS[0])
        assert session._cache is not None
    assert session._cache is None
    assert session._cached == session.images == []
    assert len(session.history) == 1
    session.close()
    for call in (lambda: session.chat("Hi"), session.retry, lambda: session.show(tiles)):
        with pytest.raises(ValueError, match=r"The session is closed; start another one with start_chat\(\)"):
            call()


def test_a_failure_leaves_the_history(model, tokenizer, tiles, monkeypatch):
    session = model.start_chat(tokenizer, tiles, SHORT)
    session.chat(QUESTIONS[0])
    history, images = list(session.history), list(session.images)
    with pytest.raises(ValueError, match="3 <image> for 2 image"):
        session.chat("<image><image>", tiles[:1])
    layer = model.language_model.model.layers[-1]
    with monkeypatch.context() as patch:
        patch.setattr(layer, "forward", lambda *args, **kwargs: (_ for _ in ()).throw(RuntimeError("no memory")))
        with pytest.raises(RuntimeError, match="no memory"):
            session.chat(QUESTIONS[1])
    assert session.history == history
    assert session.images == images
    assert session.chat(QUESTIONS[1]) == model.chat(tokenizer, tiles, QUESTIONS[1], SHORT, history=history)


def test_bad_calls(model, tokenizer, tiles):
    session = model.start_chat(tokenizer, generation_config=SHORT)
    with pytest.raises(ValueError, match="There is no question to ask again"):
        session.retry()
    with pytest.raises(ValueError, match="There are 0 turns; 1 of them cannot be discarded"):
        session.rewind()
    with pytest.raises(ValueError, match="question is None; expected text"):
        session.chat(None)
    with pytest.raises(ValueError, match="pixel_values is None; give the tiles of the images to show"):
        session.show(None)
    with pytest.raises(ValueError, match=r"num_patches_list is \[1\], but pixel_values is None"):
        session.chat("Hi", num_patches_list=[1])
    for wrong in ("examples/shapes.png", tiles[0], tiles[:0]):
        with pytest.raises(ValueError, match=r"pixel_values is .*; expected a tensor \(tiles, 3, height, width\)"):
            session.show(wrong)
    session.history.append("Hi")
    with pytest.raises(ValueError, match=r"history\[0\] is 'Hi'; expected a pair of texts"):
        session.chat("Hi")
    session.history.clear()
    session.chat("What?", model.encode_images(torch.rand(1, 3, 56, 56)))
    with pytest.raises(ValueError, match=r"tiles have \[4, 16\] image tokens; use one tile size for all"):
        session.chat("And this?", tiles[:1])


FEW = {"max_new_tokens": 3, "do_sample": False}


def check_history(model, tokenizer, history, cut=()):
    """Each answer is `chat`'s after the turns before it; of a question whose stream was stopped, its prefix."""
    for turn, (question, answer) in enumerate(history):
        expected = model.chat(tokenizer, None, question, FEW, history=history[:turn])
        assert expected.startswith(answer) if question in cut else expected == answer


def test_eight_threads_on_one_session(model, tokenizer):
    session, start = model.start_chat(tokenizer, None, FEW), threading.Barrier(8)

    def ask(thread):
        start.wait()
        first = session.chat(f"Question {thread}.1?")
        return [first, "".join(session.stream(f"Question {thread}.2?"))]

    with ThreadPoolExecutor(8) as executor:
        answers = list(executor.map(ask, range(8)))
    assert len(session.history) == 16
    returned = {f"Question {thread}.{turn + 1}?": answers[thread][turn] for thread in range(8) for turn in range(2)}
    assert dict(session.history) == returned
    check_history(model, tokenizer, session.history)


class Visitor:
    """Does random things with a session, and writes down what it was answered."""

    def __init__(self, session, seed):
        self.session, self.dice = session, random.Random(seed)
        self.returned, self.refused, self.cut = [], [], set()

    def act(self, name):
        actions = (self.ask, self.stream, self.stop, self.retry, self.score, self.rewind)
        for number in range(5):
            action = self.dice.choice((*actions, self.close if number > 3 else self.ask))
            try:
                action(f"Question {name}.{number}?")
            except ValueError as error:
                self.refused.append(str(error))
        return self

    def ask(self, question):
        self.returned.append((question, self.session.chat(question)))

    def retry(self, question):
        self.returned.append((question, self.session.retry(question)))

    def stream(self, question):  # a rewind or a close may stop it
        self.cut.add(question)
        self.returned.append((question, "".join(self.session.stream(question))))

    def stop(self, question):
        self.cut.add(question)
        pieces = self.session.stream(question)
        next(pieces, "")
        pieces.close()

    def score(self, question):
        assert len(self.session.score_choices(question, ["yes", "no"])) == 2

    def rewind(self, question):
        self.session.rewind()

    def close(self, question):
        self.session.close()


@pytest.mark.parametrize("seed", range(3))
def test_random_interleavings_of_threads(model, tokenizer, seed):
    """Each question is answered once or refused with a sentence, and history is what was answered."""
    session = model.start_chat(tokenizer, None, FEW)
    with ThreadPoolExecutor(4) as executor:
        visitors = list(executor.map(lambda name: Visitor(session, 100 * seed + name).act(name), range(4)))
    refused = {sentence.split(";")[0] for visitor in visitors for sentence in visitor.refused}
    assert refused <= {"The session is closed", "There are 0 turns", "There is no question to ask again"}
    questions = [question for question, _ in session.history]
    assert len(set(questions)) == len(questions)
    returned = [pair for visitor in visitors for pair in visitor.returned]
    cut = {question for visitor in visitors for question in visitor.cut}
    assert all(pair in returned or pair[0] in cut for pair in session.history)
    check_history(model, tokenizer, session.history, cut)


@pytest.mark.parametrize("seed", range(3))
def test_random_interleavings_with_streams(model, tokenizer, seed):
    """One thread, with streams left open while it does something else; beside it, what the history must be."""
    session, dice, expected = model.start_chat(tokenizer, None, FEW), random.Random(seed), []
    for number in range(12):
        question, action = f"Question {number}?", dice.choice(("ask", "stream", "left open", "rewind", "retry"))
        if action == "ask":
            expected.append((question, session.chat(question)))
        elif action == "stream":
            expected.append((question, "".join(session.stream(question))))
        elif action == "left open":
            stream = session.stream(question)
            first = next(stream, "")
            if dice.random() < 0.5:  # waits for the whole answer
                later = session.chat(f"{question} And?")
                expected += [(question, first + "".join(stream)), (f"{question} And?", later)]
            else:  # stops it, and takes it away
                session.rewind()
                assert session.history == expected
                assert list(stream) is not None
        elif action == "rewind" and expected:
            session.rewind()
            expected.pop()
        elif action == "retry" and expected:
            expected[-1] = (question, session.retry(question))
        assert session.history == expected
    check_history(model, tokenizer, expected)


def test_close_stops_a_stream_and_keeps_what_was_said(model, tokenizer):
    session = model.start_chat(tokenizer, None, {"max_new_tokens": 2000, "do_sample": False})
    stream = session.stream("Hello")
    first = next(stream)
    session.close()
    ((question, answer),) = session.history
    assert question == "Hello"
    assert first + "".join(stream) == answer
    assert len(tokenizer(answer).input_ids) < 1000
    with pytest.raises(ValueError, match="The session is closed"):
        session.chat("And now?")


def test_a_question_that_would_wait_for_itself_is_refused(model, tokenizer):
    session = model.start_chat(tokenizer, None, FEW)

    class Asking(BaseStreamer):
        def put(self, value):
            session.chat("What?")

        def end(self):
            pass

    for call in (lambda: session.chat("Hello", streamer=Asking()), lambda: session.retry(streamer=Asking())):
        with pytest.raises(RuntimeError, match="The session is asked while it answers, by a streamer or criterion"):
            call()
        session.history[:] = [("Hello", "Hi")]
    assert session.chat("And now?")


def test_beside_the_stream_of_a_model_in_training(golden_model, tokenizer):
    model = golden_model("c01_v15_26b", fresh=True).train()
    session = model.start_chat(tokenizer, None, {"max_new_tokens": 40, "do_sample": False})
    stream = session.stream("Hello")
    said = next(stream)
    with pytest.raises(RuntimeError, match="streaming an answer of a model in training, which goes on only while it"):
        session.chat("And now?")
    session.rewind()
    assert session.history == []
    assert said
    list(stream)
    assert model.training
    assert session.chat("And now?", generation_config=FEW)


def test_images_shown_during_an_answer_are_of_the_next_question(model, tokenizer, tiles):
    session = model.start_chat(tokenizer, None, FEW)

    class Showing(BaseStreamer):
        def put(self, value):
            if not session._shown:
                session.show(tiles[:1])

        def end(self):
            pass

    session.chat("Hello", streamer=Showing())
    session.chat("What is it?")
    assert [question for question, _ in session.history] == ["Hello", "<image>\nWhat is it?"]


def test_scores_are_those_of_score_choices(model, tokenizer, tiles, counted):
    session = model.start_chat(tokenizer, tiles, SHORT)
    session.chat(QUESTIONS[0])
    history, choices = list(session.history), ["yes", "no, never", "好的"]
    counts = counted(model)
    found = session.score_choices(QUESTIONS[1], choices)
    seen, read, _ = counts.take()
    assert seen == 0
    assert read < 30
    expected = model.score_choices(tokenizer, tiles, QUESTIONS[1], choices, history=history)
    for one, other in zip(found, expected, strict=True):
        assert (one.text, one.token_ids) == (other.text, other.token_ids)
        torch.testing.assert_close(one.logprobs, other.logprobs, atol=1e-4, rtol=1e-4)
    assert session.history == history
    answer = session.chat_with_logprobs(QUESTIONS[1])
    expected = model.chat_with_logprobs(tokenizer, tiles, QUESTIONS[1], SHORT, history=history)
    assert (answer.text, answer.token_ids) == (expected.text, expected.token_ids)
    torch.testing.assert_close(answer.logprobs, expected.logprobs, atol=1e-4, rtol=1e-4)
    assert session.history == [*history, (QUESTIONS[1], answer.text)]


def test_a_second_turn_tokenizes_only_what_is_new(model, goldens, tiles):
    from internvl_chat.tokenization_internlm2 import InternLM2Tokenizer  # noqa: PLC0415

    texts = []

    class Counting(InternLM2Tokenizer):
        def __call__(self, text, *args, **kwargs):
            texts.append(text)
            return super().__call__(text, *args, **kwargs)

    tokenizer = Counting.from_pretrained(goldens / "tokenizer")
    session = model.start_chat(tokenizer, tiles, FEW)
    session.chat("Is it a long question?")
    texts.clear()
    session.chat("And a second one?")
    answer = session.history[0][1]
    assert [text.removeprefix("</img>") for text in texts] == [
        f"<|im_start|>assistant\n{answer}<|im_end|>",
        "<|im_start|>user\nAnd a second one?<|im_end|>",
    ]
    # A token that is added between two questions is one token.
    tokenizer.add_tokens(["<seg>"])
    assert session._answerer().encoder.text_ids("<seg>") == [len(tokenizer) - 1]


@pytest.mark.newest
def test_the_embedded_checkpoint(tiny_folder):
    from transformers import AutoModelForImageTextToText, AutoProcessor  # noqa: PLC0415

    processor = AutoProcessor.from_pretrained(tiny_folder, trust_remote_code=True)
    model = AutoModelForImageTextToText.from_pretrained(tiny_folder, trust_remote_code=True)
    tiles = processor.image_processor("examples/shapes.png")["pixel_values"]
    session, history = model.start_chat(processor.tokenizer, tiles, SHORT), None
    for question in ("What colour is the circle?", "红色的是什么形状？", "What colour is the star?"):
        answer, history = model.chat(processor.tokenizer, tiles, question, SHORT, history=history, return_history=True)
        assert session.chat(question) == answer
