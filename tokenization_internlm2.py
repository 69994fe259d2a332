"""InternLM2's tokenizer: the published SentencePiece model `tokenizer.model` and the chat tokens added to it.

It answers with the ids and the text of the official slow tokenizer, id by id and blank by blank. Its fast form is in
`tokenization_internlm2_fast.py`; what both share is here. It does not write prompts and does not guard against control
tokens typed by a user: conversations are built elsewhere.
"""

import json
from itertools import groupby
from pathlib import Path
from typing import Any

from transformers import AddedToken, PreTrainedTokenizer
from transformers.utils import logging


try:  # what stands outside a try must be installed, and checkpoints with other tokenizers load this file as well
    from sentencepiece import SentencePieceProcessor
except ImportError:
    SentencePieceProcessor = None

logger = logging.get_logger(__name__)
VOCAB_FILES_NAMES = {"vocab_file": "tokenizer.model"}

# The official tokenizer tidies English punctuation in everything it decodes, whatever `clean_up_tokenization_spaces`
# says. The order counts: each replacement sees the text that the one before it left.
CLEAN_UPS = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)


def load_sentencepiece(vocab_file: str | None) -> SentencePieceProcessor:
    """Load a SentencePiece model.

    Args:
        vocab_file: Path of the model, `None` where the checkpoint has none.

    Returns:
        The processor.

    Raises:
        ImportError: If sentencepiece is not installed.
        ValueError: If there is no such file, or it is not a SentencePiece model. Not an `OSError` or `RuntimeError`,
            which `from_pretrained` would replace by a message that names neither the file nor the reason.
    """
    if SentencePieceProcessor is None:
        raise ImportError("The tokenizer needs sentencepiece, which is not installed: pip install sentencepiece.")
    expected = VOCAB_FILES_NAMES["vocab_file"]
    if vocab_file is None or not Path(vocab_file).is_file():
        found = "the checkpoint has no such file" if vocab_file is None else f"{vocab_file} is not a file"
        raise ValueError(
            f"The tokenizer needs the SentencePiece model {expected}, but {found}. "
            f"Put {expected} of the published checkpoint beside tokenizer_config.json."
        )
    sp_model = SentencePieceProcessor()
    try:
        sp_model.Load(str(vocab_file))
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"{vocab_file} ({Path(vocab_file).stat().st_size} bytes) is not a SentencePiece model. A file of some "
            f"hundred bytes is a Git LFS pointer: download {expected} again, with `git lfs pull` or from the Hub."
        ) from error
    return sp_model


def pop_special_tokens(kwargs: dict[str, Any], without: list[str]) -> list[str | AddedToken]:
    """Take the special tokens that have no role (such as `<img>`) out of the arguments of a tokenizer.

    Transformers 4 calls their list `additional_special_tokens` and saves `extra_special_tokens`, an empty mapping of
    further roles, beside it. Transformers 5 calls the list `extra_special_tokens`. Some releases drop the list of a
    folder saved by another: then the tokens marked special in `added_tokens_decoder` are all that is left of it.

    Args:
        kwargs: The arguments; changed in place. A mapping of roles stays in them.
        without: Tokens that have a role.

    Returns:
        The tokens, under whichever name they came.
    """
    listed = kwargs.pop("additional_special_tokens", None)
    if isinstance(kwargs.get("extra_special_tokens"), (list, tuple)):
        listed = kwargs.pop("extra_special_tokens") or listed
    elif not kwargs.get("extra_special_tokens"):
        kwargs.pop("extra_special_tokens", None)
    if listed:
        return list(listed)
    added_tokens = kwargs.get("added_tokens_decoder", {}).values()
    return [token for token in added_tokens if token.special and token.content not in without]


class InternLM2TokenizerMixin:
    """What the slow tokenizer and the fast one have in common: loading, the official text, `<s>` and `</s>`."""

    @classmethod
    def from_pretrained(cls, *args, **kwargs) -> "InternLM2Tokenizer":
        """Load the tokenizer of a checkpoint, as every tokenizer of Transformers does.

        Args:
            *args: The folder or Hub repository.
            **kwargs: Options of the base class, and arguments of the constructor.

        Returns:
            The tokenizer.

        Raises:
            ValueError: If the SentencePiece model is missing or not one.
        """
        try:
            return super().from_pretrained(*args, **kwargs)
        except ImportError as error:
            # Where protobuf is not installed, some releases answer any error of the constructor by asking for it.
            if isinstance(error.__context__, (ValueError, ImportError)):
                raise error.__context__ from None
            raise

    def apply_chat_template(self, conversation: Any, *args: Any, **kwargs: Any) -> Any:
        """Write messages as a prompt, as every tokenizer does; it cannot guard control tokens that a user typed.

        They are encoded as control tokens, here and wherever the text is tokenized. `chat`, the processor and its
        collator keep them text.

        Args:
            conversation: Messages with `role` and `content`.
            *args: What the base class takes.
            **kwargs: What the base class takes.

        Returns:
            The prompt, or ids.
        """
        logger.warning_once(
            "The tokenizer's apply_chat_template encodes control tokens typed in messages as control tokens; for text "
            "of other people, use the processor's apply_chat_template or chat(), which keep them text."
        )
        return super().apply_chat_template(conversation, *args, **kwargs)

    def _spell(self, pieces: list[str]) -> str:
        """Return the text of pieces of the SentencePiece model, none of which is an added token."""
        raise NotImplementedError

    def official_string(self, tokens: list[str]) -> str:
        """Join tokens into text, the official way.

        A run of special tokens puts one blank in front of the plain text before it (not in front of itself):
        `["<s>", "Hello"]` gives `" <s>Hello"` and `["Hello", "</s>"]` gives `" Hello</s>"`.

        Args:
            tokens: Pieces and special tokens.

        Returns:
            The text, with English punctuation tidied.
        """
        special_tokens = self._special_tokens()
        text = plain = ""
        for is_special, run in groupby(tokens, key=special_tokens.__contains__):
            if is_special:
                text += " " + plain + "".join(run)
                plain = ""
            else:
                plain = self._spell(list(run))
        return self.clean_up_tokenization(text + plain)

    @staticmethod
    def clean_up_tokenization(text: str) -> str:
        """Remove the blanks in front of English punctuation and contractions."""
        for spaced, tidy in CLEAN_UPS:
            text = text.replace(spaced, tidy)
        return text

    def official_decode(
        self,
        token_ids: int | list[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        spaces_between_special_tokens: bool = True,
        **kwargs,
    ) -> str:
        """Decode token ids the official way, without relying on Transformers, whose releases differ here.

        Args:
            token_ids: One id or a sequence of ids.
            skip_special_tokens: Whether to leave out special tokens.
            clean_up_tokenization_spaces: Whether to tidy the joined text once more; its parts always are.
            spaces_between_special_tokens: Whether to put a blank around each token that lies behind the pieces of the
                model, such as `<img>`, or that was added as an ordinary word.
            **kwargs: Ignored; `decode` passes on what other tokenizers need.

        Returns:
            The text.
        """
        tokens = self._kept_tokens(token_ids, skip_special_tokens)
        special_tokens = self._special_tokens()
        standing_apart = {
            token
            for token, index in self.get_added_vocab().items()
            if index >= self.vocab_size or token not in special_tokens
        }
        parts = []
        for apart, run in groupby(tokens, key=standing_apart.__contains__):
            run_tokens = list(run)
            parts.extend(run_tokens if apart else [self.official_string(run_tokens)])
        text = (" " if spaces_between_special_tokens else "").join(part for part in parts if part)

        if clean_up_tokenization_spaces is None:
            clean_up_tokenization_spaces = self.clean_up_tokenization_spaces
        return self.clean_up_tokenization(text) if clean_up_tokenization_spaces else text

    def _special_tokens(self) -> set[str]:
        # The base class lists those that were added later in slow tokenizers only.
        added = self.added_tokens_decoder.values()
        return {*self.all_special_tokens, *(token.content for token in added if token.special)}

    def _kept_tokens(self, token_ids: int | list[int], skip_special_tokens: bool) -> list[str]:
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        added = self.added_tokens_decoder
        if unknown := [index for index in ids if not (0 <= index < self.vocab_size or index in added)]:
            raise ValueError(
                f"The id {unknown[0]} is not in the vocabulary of {len(self)} tokens. Leave out what is not a token, "
                "such as the -100 of labels."
            )
        tokens = self.convert_ids_to_tokens(ids)
        skipped = self._special_tokens() if skip_special_tokens else set()
        return [token for token in tokens if token not in skipped]

    def _save_pretrained(
        self,
        save_directory: str,
        file_names: tuple[str, ...],
        legacy_format: bool | None = None,
        filename_prefix: str | None = None,
    ) -> tuple[str, ...]:
        """Write the files of the vocabulary, and into tokenizer_config.json what some releases leave out of it."""
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        settings_file = Path(save_directory) / f"{prefix}tokenizer_config.json"
        settings = json.loads(settings_file.read_text("utf-8"))
        settings["added_tokens_decoder"] = {
            str(index): token.__getstate__() for index, token in self.added_tokens_decoder.items()
        }
        settings |= {"add_bos_token": self.add_bos_token, "add_eos_token": self.add_eos_token}
        settings_file.write_text(json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")
        return super()._save_pretrained(save_directory, file_names, legacy_format, filename_prefix)

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Add `bos_token` in front and `eos_token` behind, each if asked for; a pair is joined with nothing between.

        Args:
            token_ids_0: Ids of the text.
            token_ids_1: Ids of a second text.

        Returns:
            Ids of the sequence.
        """
        bos = [self.bos_token_id] if self.add_bos_token else []
        eos = [self.eos_token_id] if self.add_eos_token else []
        return bos + list(token_ids_0) + list(token_ids_1 or []) + eos

    def get_special_tokens_mask(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """Mark the tokens that `build_inputs_with_special_tokens` adds.

        Args:
            token_ids_0: Ids of the text.
            token_ids_1: Ids of a second text.
            already_has_special_tokens: Whether `token_ids_0` holds the special tokens already.

        Returns:
            1 for a special token, 0 for any other, as many as the sequence has tokens.
        """
        if already_has_special_tokens:
            return super().get_special_tokens_mask(token_ids_0, token_ids_1, already_has_special_tokens=True)
        text_length = len(token_ids_0) + len(token_ids_1 or [])
        return [1] * self.add_bos_token + [0] * text_length + [1] * self.add_eos_token

    def create_token_type_ids_from_sequences(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Return zeros: the model has no token types.

        Args:
            token_ids_0: Ids of the text.
            token_ids_1: Ids of a second text.

        Returns:
            One zero for each token of the sequence.
        """
        return [0] * len(self.build_inputs_with_special_tokens(token_ids_0, token_ids_1))


class InternLM2Tokenizer(InternLM2TokenizerMixin, PreTrainedTokenizer):
    """SentencePiece tokenizer with byte fallback, without dummy prefix, that puts `<s>` in front and nothing behind.

    Ids and sizes come from the model file and from `added_tokens_decoder` in tokenizer_config.json. An added token may
    share its id with a piece: in the published vocabulary `<|im_end|>` renames the piece `[UNUSED_TOKEN_145]`, and
    either text is encoded to that id.

    Args:
        vocab_file: Path of the SentencePiece model.
        unk_token: Token for what the model cannot spell.
        bos_token: Token put in front of every sequence if `add_bos_token`.
        eos_token: Token put behind every sequence if `add_eos_token`.
        pad_token: Token that fills up a batch.
        add_bos_token: Whether `add_special_tokens=True` puts `bos_token` in front.
        add_eos_token: Whether `add_special_tokens=True` puts `eos_token` behind.
        **kwargs: What every tokenizer of Transformers takes.
    """

    vocab_files_names = VOCAB_FILES_NAMES
    model_input_names = ["input_ids", "attention_mask"]
    _auto_class = "AutoTokenizer"

    def __init__(
        self,
        vocab_file: str | None = None,
        unk_token: str | AddedToken = "<unk>",
        bos_token: str | AddedToken = "<s>",
        eos_token: str | AddedToken = "</s>",
        pad_token: str | AddedToken = "</s>",
        add_bos_token: bool = True,
        add_eos_token: bool = False,
        **kwargs,
    ) -> None:
        roles = (unk_token, bos_token, eos_token, pad_token)
        kwargs["additional_special_tokens"] = pop_special_tokens(kwargs, without=[str(token) for token in roles])
        self.vocab_file = vocab_file
        self.add_bos_token = add_bos_token
        self.add_eos_token = add_eos_token
        # Before the base class, which looks its special tokens up in the vocabulary.
        self.sp_model = load_sentencepiece(vocab_file)
        super().__init__(
            unk_token=unk_token,
            bos_token=bos_token,
            eos_token=eos_token,
            pad_token=pad_token,
            add_bos_token=add_bos_token,
            add_eos_token=add_eos_token,
            **kwargs,
        )

    @property
    def vocab_size(self) -> int:
        """Number of pieces of the SentencePiece model, without the tokens added behind them."""
        return self.sp_model.get_piece_size()

    def get_vocab(self) -> dict[str, int]:
        """Return every token with its id; where an added token shares its id with a piece, the added token only."""
        ids = range(self.vocab_size)
        return dict(zip(self.convert_ids_to_tokens(ids), ids, strict=True)) | self.added_tokens_encoder

    def _tokenize(self, text: str, **kwargs) -> list[str]:
        """Split text that holds no added token into pieces."""
        return self.sp_model.encode(text, out_type=str)

    def _convert_token_to_id(self, token: str) -> int:
        return self.sp_model.piece_to_id(token)

    def _convert_id_to_token(self, index: int) -> str:
        return self.sp_model.id_to_piece(index)

    def _spell(self, pieces: list[str]) -> str:
        return self.sp_model.decode(pieces)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join tokens into text, the official way; see `official_string`."""
        return self.official_string(tokens)

    def _decode(self, token_ids: int | list[int], **kwargs) -> str:
        return self.official_decode(token_ids, **kwargs)

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        """Write the SentencePiece model, byte for byte the file that was loaded where that file still exists.

        Args:
            save_directory: An existing folder.
            filename_prefix: Put in front of the file name with a hyphen.

        Returns:
            The path of the file written.
        """
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        source = Path(self.vocab_file)
        # Not always serialized: SentencePiece 0.2.3 changes the type of the piece for NUL while it loads the model.
        model = source.read_bytes() if source.is_file() else self.sp_model.serialized_model_proto()
        target = Path(save_directory) / (prefix + VOCAB_FILES_NAMES["vocab_file"])
        target.write_bytes(model)
        return (str(target),)


__all__ = ["InternLM2Tokenizer"]
