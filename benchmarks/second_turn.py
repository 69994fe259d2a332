"""How long is the wait for the first token of a second question about the same picture?

    python -m benchmarks.second_turn --layout 2b --tiles 13

A session keeps what the model has read; this package's own `chat` with a history, the reference, reads all again.
"""

import argparse
from collections.abc import Iterator

from benchmarks import measure
from benchmarks.models import OURS, answer_options, build, load_tokenizer, make_inputs


SESSION, STATELESS = "session", "chat with history"
FIRST_QUESTION = "What does this picture show?"


def cases(options: argparse.Namespace) -> Iterator[list[dict]]:
    """Measure both ways in turns, for each number of tiles."""
    model = build(OURS, options.layout, options.device, options.dtype)
    tokenizer = load_tokenizer()
    one_token = answer_options(model, tokenizer, new_tokens=1)
    for num_tiles in options.tiles:
        pixels = make_inputs(options.layout, num_tiles, options.device, options.dtype)["pixel_values"]
        with model.start_chat(tokenizer, pixels) as session:
            session.chat(FIRST_QUESTION, generation_config=answer_options(model, tokenizer, new_tokens=8))
            history = list(session.history)
            # Another question every time, or the session would have read it before.
            questions = {name: (f"And question {i}?" for i in range(1000)) for name in (SESSION, STATELESS)}
            answers: dict[str, list[str]] = {SESSION: [], STATELESS: []}

            def ask_session(session=session, questions=questions, answers=answers) -> None:  # noqa: ANN001
                answers[SESSION].append(session.chat(next(questions[SESSION]), generation_config=one_token))
                session.rewind()

            def ask_again(pixels=pixels, history=history, questions=questions, answers=answers) -> None:  # noqa: ANN001
                question = next(questions[STATELESS])
                answers[STATELESS].append(model.chat(tokenizer, pixels, question, one_token, history=history))

            seconds = measure.in_turns({SESSION: ask_session, STATELESS: ask_again}, options.repeats)
        rows = measure.rows(f"{num_tiles} tiles", measure.milliseconds(seconds), "ms", STATELESS)
        equal = sum(a == b for a, b in zip(answers[SESSION], answers[STATELESS], strict=True))
        rows[0]["note"] = f"{equal} of {len(answers[SESSION])} answers equal"
        yield rows


def main() -> None:
    """Measure and write the result."""
    options = measure.parser(__doc__, tiles=(13,)).parse_args()
    measure.prepare(options)
    question = "How long does a second question about the same picture wait?"
    measure.write("second_turn", question, options, cases(options))


if __name__ == "__main__":
    main()
