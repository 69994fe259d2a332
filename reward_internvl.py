"""Rewards: how right each step of an answer is, as VisualPRM scores it (arXiv 2503.10291), and the best of N answers.

A step is shown as a question, after the steps before it, which all count as right; the model says "+" or "-".
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from .answer_internvl import Answerer, GenerationOptions, id_rows
from .cache_internvl import stretching_limit
from .conversation_internvl import ids_of, split_at
from .generation_internvl import answering
from .image_features_internvl import EncodedImages, ImageInput, count_tiles
from .prompt_format_internvl import IMAGE_PLACEHOLDER, Turn
from .session_internvl import place_in_front


RIGHT, WRONG = SIGNS = ("+", "-")
STEP_SEPARATOR = "\n\n"
FIRST_STEP = "### Question:\n{question}\n\n### Solution Process:\n{step}"
# What the words of a hard judgement are worth; the third is spelt so by the published model.
HARD_SCORES = {"Good": 2, "Slightly Good": 1, "Neural": 0, "Slightly Bad": -1, "Bad": -2, RIGHT: 0, WRONG: -100}
STOPPING = ("Bad", WRONG)
# How an answer is scored. "soft_v2" is the official name of all steps in one pass, which is how "soft" does it too.
VERSIONS = ("soft", "soft_v2", "hard", "orm_soft")
# The system message of the data that VisualPRM was trained on.
PROCESS_SYSTEM_MESSAGE = """\
You are an advanced AI assistant, designed to serve as a process supervision model for complex visual reasoning \
tasks. In this task, I will provide a problem statement followed by the first step of the solution process. For each \
subsequent turn, I will give you a new step in the solution. Your role is to assess whether the solution process is \
correct up to the current step.

- In the **first round**, I will input the problem and the first step of the solution process.
- In **each subsequent round**, I will provide the next step in the solution.

For each step, you should:

- Respond with **"+"** if you believe the solution process is correct up to this step.
- Respond with **"-"** if you detect any issues or errors in the process up to this step.

Please note:
- Only respond with **"+"** or **"-"**. Do not provide any additional explanations, comments, or justifications.

Your task is to verify the accuracy and correctness of each step in the given solution process."""


@dataclass(frozen=True)
class StepScore:
    """A step of an answer and its score.

    Attributes:
        step: The text of the step.
        score: The share of "+" against "-", 0 to 1; or what the judgement is worth, see `HARD_SCORES`.
    """

    step: str
    score: float


@dataclass(frozen=True)
class BestOfN:
    """The best of several answers.

    Attributes:
        answer: The answer with the highest score.
        answers: All different answers, the best first.
        scores: The score of each.
    """

    answer: str
    answers: tuple[str, ...]
    scores: tuple[float, ...]


def split_steps(response: str, max_steps: int | None = None) -> list[str]:
    """Split an answer into steps at blank lines.

    Args:
        response: The answer.
        max_steps: Join neighbours until there are at most so many.

    Returns:
        The steps; joined by blank lines they are the answer.

    Raises:
        ValueError: If `max_steps` is below 1.
    """
    if max_steps is not None and max_steps < 1:
        raise ValueError(f"max_steps is {max_steps}; expected at least 1, or None for no limit.")
    steps = response.split(STEP_SEPARATOR)
    size = 1 if max_steps is None else math.ceil(len(steps) / max_steps)
    return [STEP_SEPARATOR.join(steps[start : start + size]) for start in range(0, len(steps), size)]


class RewardMixin:
    """Scores of steps for a model with `ChatMixin`; nothing is left behind on the model."""

    def score_steps(
        self,
        tokenizer: PreTrainedTokenizerBase,
        pixel_values: ImageInput | None,
        question: str,
        response: str,
        num_patches_list: Sequence[int] | None = None,
        max_steps: int | None = None,
        version: str = "soft",
        early_stop: bool = False,
        system: str | None = None,
    ) -> list[StepScore]:
        """Score the steps of an answer.

        Args:
            tokenizer: See `chat`.
            pixel_values: See `chat`.
            question: What was asked. `<image>` marks where an image stands; without any, images stand in front.
            response: The answer.
            num_patches_list: See `chat`.
            max_steps: See `split_steps`.
            version: "soft" for the share of "+" against "-" after each step, all in one pass; "orm_soft" for the whole
                answer as one step; "hard" for what the model writes, one answer for each step.
            early_stop: Whether "hard" ends after the first wrong step.
            system: System message; None means the model's. VisualPRM was trained on `PROCESS_SYSTEM_MESSAGE`.

        Returns:
            The steps in their order.

        Raises:
            ValueError: If the version is unknown, "+" and "-" are no tokens of the tokenizer, or early_stop is asked
                for where all steps are scored at once; as `chat`.
        """
        if version not in VERSIONS:
            raise ValueError(f"version is {version!r}; known are {', '.join(map(repr, VERSIONS))}.")
        if early_stop and version != "hard":
            raise ValueError(f"early_stop is for version='hard'; {version!r} scores all steps at once. Leave it out.")
        num_tiles = count_tiles(pixel_values, num_patches_list)
        steps = [response] if version == "orm_soft" else split_steps(response, max_steps)
        asked = place_in_front(question) if num_tiles else question
        texts = [FIRST_STEP.format(question=asked, step=steps[0]), *steps[1:]]
        if version == "hard":
            return self._hard_scores(tokenizer, pixel_values, steps, texts, num_tiles, early_stop, system)
        scores = self._soft_scores(tokenizer, pixel_values, texts, num_tiles, system)
        return [StepScore(step, score) for step, score in zip(steps, scores, strict=True)]

    def score_response(self, *args: Any, **kwargs: Any) -> float:
        """Score an answer as a whole: the mean of soft scores of its steps, the sum of hard ones.

        Args:
            *args: See `score_steps`.
            **kwargs: See `score_steps`.

        Returns:
            The score.
        """
        scores = [step.score for step in self.score_steps(*args, **kwargs)]
        return math.fsum(scores) / (1 if kwargs.get("version") == "hard" else len(scores))

    def select_best(
        self,
        policy: Any,
        tokenizer: PreTrainedTokenizerBase,
        pixel_values: ImageInput | None,
        question: str,
        num_answers: int = 8,
        generation_config: GenerationOptions = None,
        num_patches_list: Sequence[int] | None = None,
        reward_tokenizer: PreTrainedTokenizerBase | None = None,
        **scoring: Any,
    ) -> BestOfN:
        """Draw answers from a policy model, score each, and return the best.

        Args:
            policy: The model that answers, of this package.
            tokenizer: The policy's tokenizer.
            pixel_values: Tiles, which both models encode; see `chat`.
            question: See `chat`.
            num_answers: How many answers are drawn.
            generation_config: How; the default samples with temperature 1.
            num_patches_list: See `chat`.
            reward_tokenizer: This model's tokenizer; None means the policy's.
            **scoring: `version`, `max_steps`, `early_stop` and `system` of `score_steps`.

        Returns:
            The best answer, and all that were drawn.

        Raises:
            ValueError: If images are encoded already, which only the model that encoded them can read; if
                `num_answers` is below 1; as `chat` and `score_steps`.
        """
        if isinstance(pixel_values, EncodedImages):
            raise ValueError("pixel_values are encoded by one model, but two read them; give the tiles.")
        if num_answers < 1:
            raise ValueError(f"num_answers is {num_answers}; expected at least 1.")
        num_tiles = count_tiles(pixel_values, num_patches_list)
        answerer = Answerer(policy, tokenizer)
        turns = [(place_in_front(question) if num_tiles else question, "")]
        prompt = id_rows([ids_of(answerer.prompt(turns, num_tiles, policy._tile_tokens(pixel_values)))])  # (1, seq)
        inputs = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt), "pixel_values": pixel_values}
        options = {"do_sample": True, "temperature": 1.0} if generation_config is None else generation_config
        output = answerer.generate(inputs, options, num_return_sequences=num_answers)
        rows = (output if isinstance(output, torch.Tensor) else output.sequences).tolist()
        answers = dict.fromkeys(map(answerer.text, rows))
        own = tokenizer if reward_tokenizer is None else reward_tokenizer
        encoded = None if pixel_values is None else self.encode_images(pixel_values, num_tiles)
        scores = [self.score_response(own, encoded, question, answer, **scoring) for answer in answers]
        ranked = sorted(zip(answers, scores, strict=True), key=lambda pair: -pair[1])
        return BestOfN(ranked[0][0], *map(tuple, zip(*ranked, strict=True)))

    def select_best_response(
        self,
        tokenizer: PreTrainedTokenizerBase,
        question: str,
        response_list: Sequence[str],
        pixel_values: ImageInput | None,
        num_patches_list: Sequence[int] | None = None,
        max_steps: int | None = None,
        early_stop: bool = False,
        version: str = "hard",
        return_scores: bool = False,
    ) -> list[str] | list[tuple[str, float]]:
        """Sort answers by their scores, the best first: the official call.

        Args:
            tokenizer: See `chat`.
            question: See `score_steps`.
            response_list: The answers.
            pixel_values: See `chat`.
            num_patches_list: See `chat`.
            max_steps: See `split_steps`.
            early_stop: See `score_steps`; without effect on soft scores, as in the official code.
            version: See `score_steps`.
            return_scores: Whether to return the scores too.

        Returns:
            The answers, or pairs of answer and score.
        """
        options = {"max_steps": max_steps, "version": version, "early_stop": early_stop and version == "hard"}
        scored = [
            (one, self.score_response(tokenizer, pixel_values, question, one, num_patches_list, **options))
            for one in response_list
        ]
        scored.sort(key=lambda pair: -pair[1])
        return scored if return_scores else [response for response, _ in scored]

    @torch.no_grad()
    def _soft_scores(
        self,
        tokenizer: PreTrainedTokenizerBase,
        pixel_values: ImageInput | None,
        texts: Sequence[str],
        num_tiles: Sequence[int],
        system: str | None,
    ) -> list[float]:
        """Return the share of "+" after each step, the answers to all earlier ones being "+"."""
        answerer = Answerer(self, tokenizer, system)
        encoder, style, system = answerer.encoder, answerer.style, answerer.system
        turns, signs = [], []
        for text in texts:
            parts = tuple(split_at(IMAGE_PLACEHOLDER, text)) if num_tiles and not turns else (text,)
            turns += [Turn("user", parts), Turn("assistant", (RIGHT,), is_learned=True)]
        for sign in SIGNS:
            last = [turns[0], Turn("assistant", (sign,), is_learned=True)]
            ids = encoder.encode(style, last, num_tiles, 0, system=system, awaits_answer=False)[-1].ids[:-1]
            signs += ids if len(ids) == 1 else [None]
        if None in signs:
            raise ValueError(
                f"{' and '.join(SIGNS)} are not one token each of the tokenizer; expected VisualPRM's own."
            )
        pieces = encoder.encode(
            style, turns, num_tiles, self._tile_tokens(pixel_values), system=system, awaits_answer=False
        )
        ends = [len(ids_of(pieces[:index])) for index, piece in enumerate(pieces) if piece.kind == "answer"]
        logits = self._logits_before(answerer.image_token_id, pixel_values, ids_of(pieces)[: ends[-1]], ends)
        return torch.softmax(logits[:, signs].float(), dim=-1)[:, 0].tolist()

    def _logits_before(
        self,
        image_token_id: int,
        pixel_values: ImageInput | None,
        input_ids: Sequence[int],
        ends: Sequence[int],
    ) -> torch.Tensor:
        """Return the logits `(ends, vocab)` of what follows each of these beginnings of a conversation."""
        with answering(self):
            embeds = self.embed_inputs(id_rows([input_ids]), pixel_values, image_token_id=image_token_id)
            limit = stretching_limit(self.config.llm_config)
            if limit is not None and len(input_ids) > limit:  # each length has its own angles
                rows = [self(inputs_embeds=embeds[:, :end], use_cache=False, logits_to_keep=1) for end in ends]
                return torch.cat([row.logits[0] for row in rows])
            positions = torch.tensor(ends, device=embeds.device) - 1
            return self(inputs_embeds=embeds, use_cache=False, logits_to_keep=positions).logits[0]

    def _hard_scores(
        self,
        tokenizer: PreTrainedTokenizerBase,
        pixel_values: ImageInput | None,
        steps: Sequence[str],
        texts: Sequence[str],
        num_tiles: Sequence[int],
        early_stop: bool,
        system: str | None,
    ) -> list[StepScore]:
        """Return what the model's own judgement of each step is worth; what is no judgement counts as wrong."""
        encoded = None if pixel_values is None else pixel_values
        if isinstance(encoded, torch.Tensor):
            encoded = self.encode_images(encoded, num_tiles)
        history: list[tuple[str, str]] = []
        scores: list[StepScore] = []
        for step, text in zip(steps, texts, strict=True):
            said, history = self.chat(
                tokenizer,
                encoded,
                text,
                {"max_new_tokens": 10, "do_sample": False},
                history=history or None,
                return_history=True,
                system=system,
            )
            said = said if said in HARD_SCORES else WRONG
            scores.append(StepScore(step, HARD_SCORES[said]))
            if early_stop and said in STOPPING:
                break
        return scores
