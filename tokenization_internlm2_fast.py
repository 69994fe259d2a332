"""The fast form of InternLM2's tokenizer: the same ids from `tokenizer.json`, with offsets, batches and streaming.

`fast_backend` makes it from `tokenizer.model`. Its ids are those of the slow tokenizer, with one kind of exception:
typed `[UNUSED_TOKEN_145]`, the piece that `<|im_end|>` renames, and its like stay text instead of becoming control
tokens. Decoding gives the plain text, and the official one on request.
"""

import re
from itertools import groupby
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE
from transformers import AddedToken, PreTrainedTokenizerFast
from transformers.utils import logging

from .tokenization_internlm2 import (
    InternLM2Tokenizer,
    InternLM2TokenizerMixin,
    load_sentencepiece,
    pop_special_tokens,
)


logger = logging.get_logger(__name__)
VOCAB_FILES_NAMES = {"vocab_file": "tokenizer.model", "tokenizer_file": "tokenizer.json"}
SPACE = "▁"  # SentencePiece's own writing of a blank
BYTES = {f"<0x{byte:02X}>": byte for byte in range(256)}
# Texts that other kinds of tokenizer.json encode otherwise: blanks, bytes, merges of several scripts.
PROBES = ("The  cat's 1234 bones,", " \n\t\r\n▁x", "你好，世界 龘", "🐼é <0x0A>", "internationalization")


def fast_backend(vocab_file: str | None, added_tokens: dict[int, AddedToken]) -> Tokenizer:
    """Make the backend of the fast tokenizer, which `tokenizer.json` holds, from a SentencePiece model.

    SentencePiece merges the two neighbours whose union is the piece with the highest score; here each such pair is a
    merge, in that order. Added tokens that share their id with a piece take its place in the vocabulary, so that no
    text but their own name becomes them.

    Args:
        vocab_file: Path of the SentencePiece model.
        added_tokens: Added tokens by id.

    Returns:
        The backend, which does not yet put `<s>` in front.

    Raises:
        ValueError: If the model is missing or not one, or the ids of the added tokens behind its pieces have gaps.
    """
    model = load_sentencepiece(vocab_file)
    names = {index: str(token) for index, token in added_tokens.items()}
    pieces = [names.get(index, model.id_to_piece(index)) for index in range(model.get_piece_size())]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    written = {
        piece: index
        for piece, index in vocabulary.items()
        if not (index in names or model.is_control(index) or model.is_unknown(index) or model.is_byte(index))
    }
    merges = [
        (piece[:cut], piece[cut:])
        for piece in sorted(written, key=lambda piece: -model.get_score(written[piece]))
        for cut in range(1, len(piece))
        if piece[:cut] in written and piece[cut:] in written
    ]
    backend = Tokenizer(
        BPE(vocabulary, merges, unk_token=model.id_to_piece(model.unk_id()), fuse_unk=True, byte_fallback=True)
    )
    backend.normalizer = normalizers.Replace(" ", SPACE)
    backend.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    for index, token in sorted(added_tokens.items()):
        (backend.add_special_tokens if token.special else backend.add_tokens)([token])
        if (found := backend.token_to_id(str(token))) != index:
            raise ValueError(
                f"The added token {str(token)!r} has the id {index}, which the fast tokenizer can only give it as "
                f"{found}; expected ids of added tokens without gaps. Use the slow tokenizer, or add the missing ones."
            )
    return backend


def disagreement(backend: Tokenizer, vocab_file: str | None, added_tokens: dict[int, AddedToken]) -> str:
    """Find out where `tokenizer.json` differs from the files beside it.

    Args:
        backend: What `tokenizer.json` holds.
        vocab_file: Path of the SentencePiece model, None where there is none.
        added_tokens: Added tokens by id, which tokenizer_config.json lists.

    Returns:
        The first difference as a sentence; empty if there is none.

    Raises:
        ValueError: If the SentencePiece model is not one.
    """
    for index, token in added_tokens.items():
        if (found := backend.token_to_id(str(token))) != index:
            return f"the token {str(token)!r} has the id {found} there and {index} in tokenizer_config.json"
    if vocab_file is None or not Path(vocab_file).is_file():
        return ""
    try:
        model = load_sentencepiece(vocab_file)
    except ImportError:  # sentencepiece is not installed, nor needed beside tokenizer.json
        return ""
    renamed = backend.get_added_tokens_decoder()
    pieces = enumerate(model.id_to_piece(list(range(model.get_piece_size()))))
    expected = {piece: index for index, piece in pieces if index not in renamed}
    vocabulary = backend.get_vocab(with_added_tokens=False)
    if not expected.items() <= vocabulary.items():
        piece, index = next(item for item in expected.items() if vocabulary.get(item[0]) != item[1])
        return f"the piece {piece!r} has the id {vocabulary.get(piece)} there and {index} in tokenizer.model"
    # An added token may hide what the model does.
    texts = (text for text in PROBES if not any(str(token) in text for token in renamed.values()))
    for text in texts:
        if backend.encode(text, add_special_tokens=False).ids != model.encode(text):
            return f"the text {text!r} has other ids there than in tokenizer.model"
    return ""


class InternLM2TokenizerFast(InternLM2TokenizerMixin, PreTrainedTokenizerFast):
    """`InternLM2Tokenizer` on the `tokenizers` library, from `tokenizer.json` or else from `tokenizer.model`.

    Args:
        vocab_file: Path of the SentencePiece model, from which the tokenizer is made where there is no
            `tokenizer_file`, and which must agree with it.
        tokenizer_file: Path of `tokenizer.json`.
        unk_token: Token for what the model cannot spell.
        bos_token: Token put in front of every sequence if `add_bos_token`.
        eos_token: Token put behind every sequence if `add_eos_token`.
        pad_token: Token that fills up a batch.
        add_bos_token: Whether `add_special_tokens=True` puts `bos_token` in front; None for what `tokenizer.json`
            does, and True without it.
        add_eos_token: Whether `add_special_tokens=True` puts `eos_token` behind; None for what `tokenizer.json` does,
            and False without it.
        **kwargs: What every tokenizer of Transformers takes.

    Raises:
        ValueError: If a file is unusable, or the files and the added tokens do not belong together.
    """

    vocab_files_names = VOCAB_FILES_NAMES
    model_input_names = ["input_ids", "attention_mask"]
    slow_tokenizer_class = InternLM2Tokenizer
    _auto_class = "AutoTokenizer"

    def __init__(
        self,
        vocab_file: str | None = None,
        tokenizer_file: str | None = None,
        unk_token: str | AddedToken = "<unk>",
        bos_token: str | AddedToken = "<s>",
        eos_token: str | AddedToken = "</s>",
        pad_token: str | AddedToken = "</s>",
        add_bos_token: bool | None = None,
        add_eos_token: bool | None = None,
        **kwargs,
    ) -> None:
        roles = (unk_token, bos_token, eos_token, pad_token)
        kwargs["additional_special_tokens"] = pop_special_tokens(kwargs, without=[str(token) for token in roles])
        kwargs.pop("__slow_tokenizer", None)  # Transformers 4 makes one to convert it
        added_tokens = kwargs.get("added_tokens_decoder", {})
        if "tokenizer_object" in kwargs:  # train_new_from_iterator made another vocabulary
            vocab_file = tokenizer_file = None
        elif tokenizer_file is None or not Path(tokenizer_file).is_file():
            tokenizer_file = None
            kwargs["tokenizer_object"] = fast_backend(vocab_file, added_tokens)
            add_bos_token = add_bos_token is not False
        self.vocab_file = vocab_file
        try:
            super().__init__(
                vocab_file=vocab_file,
                tokenizer_file=tokenizer_file,
                unk_token=unk_token,
                bos_token=bos_token,
                eos_token=eos_token,
                pad_token=pad_token,
                **kwargs,
            )
        except Exception as error:
            if tokenizer_file is None or type(error) is not Exception:  # tokenizers has no class of its own
                raise
            raise ValueError(
                f"{tokenizer_file} ({Path(tokenizer_file).stat().st_size} bytes) is not a tokenizer.json: {error}. A "
                "file of some hundred bytes is a Git LFS pointer: download it again, or delete it, to make the fast "
                "tokenizer from tokenizer.model."
            ) from error
        if tokenizer_file and (difference := disagreement(self._tokenizer, vocab_file, added_tokens)):
            raise ValueError(
                f"{tokenizer_file} does not belong to the files beside it: {difference}. Delete what is wrong; "
                "`python -m examples.fast_tokenizer FOLDER` makes tokenizer.json from the others."
            )
        around = self._tokenizer.encode("").ids
        self._add_bos_token = self.bos_token_id in around if add_bos_token is None else add_bos_token
        self._add_eos_token = self.eos_token_id in around if add_eos_token is None else add_eos_token
        self.init_kwargs |= {"add_bos_token": self._add_bos_token, "add_eos_token": self._add_eos_token}
        self.update_post_processor()

    @classmethod
    def from_pretrained(
        cls, *args, backend: str | None = None, use_fast: bool = True, **kwargs
    ) -> InternLM2TokenizerMixin:
        """Load the tokenizer of a checkpoint; see the slow tokenizer.

        Args:
            *args: The folder or Hub repository.
            backend: "sentencepiece" for the slow tokenizer; in Transformers 5, `AutoTokenizer` ignores `use_fast`.
            use_fast: False for the slow tokenizer.
            **kwargs: Options of the base class, and arguments of the constructor.

        Returns:
            The tokenizer.

        Raises:
            ValueError: If neither `tokenizer.json` nor a SentencePiece model is there, or the backend is unknown.
        """
        if backend not in (None, "tokenizers", "sentencepiece"):
            raise ValueError(f"backend is {backend!r}; expected 'tokenizers' (default) or 'sentencepiece'.")
        if backend == "sentencepiece" or not use_fast:
            return cls.slow_tokenizer_class.from_pretrained(*args, **kwargs)
        return super().from_pretrained(*args, **kwargs)

    @classmethod
    def convert_to_native_format(cls, **kwargs) -> dict[str, Any]:
        """Leave the files to the constructor; some releases would take `tokenizer.json` apart before."""
        return kwargs

    @property
    def add_bos_token(self) -> bool:
        """Whether `bos_token` is put in front."""
        return getattr(self, "_add_bos_token", False)  # the base class asks before it is known

    @add_bos_token.setter
    def add_bos_token(self, value: bool) -> None:
        self._add_bos_token = value
        self.update_post_processor()

    @property
    def add_eos_token(self) -> bool:
        """Whether `eos_token` is put behind."""
        return getattr(self, "_add_eos_token", False)

    @add_eos_token.setter
    def add_eos_token(self, value: bool) -> None:
        self._add_eos_token = value
        self.update_post_processor()

    def update_post_processor(self) -> None:
        """Make the backend add what `build_inputs_with_special_tokens` does."""
        bos = [str(self.bos_token)] if self.add_bos_token else []
        eos = [str(self.eos_token)] if self.add_eos_token else []
        self._tokenizer.post_processor = processors.TemplateProcessing(
            single=[*bos, "$A", *eos],
            pair=[*bos, "$A", "$B", *eos],
            special_tokens=[(token, self.convert_tokens_to_ids(token)) for token in bos + eos],
        )

    def _spell(self, pieces: list[str]) -> str:
        text = ""
        for is_byte, run in groupby(pieces, key=BYTES.__contains__):
            if is_byte:
                # Each byte that belongs to no character becomes one U+FFFD, as in SentencePiece.
                characters = bytes(BYTES[piece] for piece in run).decode(errors="surrogateescape")
                text += re.sub("[\udc80-\udcff]", "\ufffd", characters)
            else:
                text += "".join(run).replace(SPACE, " ")
        return text

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join tokens into text, with nothing between them."""
        added = self.added_tokens_encoder
        runs = groupby(tokens, key=added.__contains__)
        return "".join("".join(run) if is_added else self._spell(list(run)) for is_added, run in runs)

    def _decode(
        self,
        token_ids: int | list[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        spaces_between_special_tokens: bool = False,
        **kwargs,
    ) -> str:
        """Decode token ids to the plain text, or to the official one.

        Args:
            token_ids: One id or a sequence of ids.
            skip_special_tokens: Whether to leave out special tokens.
            clean_up_tokenization_spaces: Whether to tidy English punctuation.
            spaces_between_special_tokens: Whether to decode as the official slow tokenizer: with blanks around
                added tokens, and tidied.
            **kwargs: Ignored; `decode` passes on what other tokenizers need.

        Returns:
            The text.
        """
        if spaces_between_special_tokens:
            return self.official_decode(token_ids, skip_special_tokens, clean_up_tokenization_spaces)
        text = self.convert_tokens_to_string(self._kept_tokens(token_ids, skip_special_tokens))
        if clean_up_tokenization_spaces is None:
            clean_up_tokenization_spaces = self.clean_up_tokenization_spaces
        return self.clean_up_tokenization(text) if clean_up_tokenization_spaces else text

    def _save_pretrained(
        self,
        save_directory: str,
        file_names: tuple[str, ...],
        legacy_format: bool | None = None,
        filename_prefix: str | None = None,
    ) -> tuple[str, ...]:
        """Write `tokenizer.json`, and `tokenizer.model` in every release: the slow tokenizer needs it."""
        files = super()._save_pretrained(save_directory, file_names, legacy_format, filename_prefix)
        return tuple(dict.fromkeys((*files, *self.save_vocabulary(str(save_directory), filename_prefix))))

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Copy the SentencePiece model, where the tokenizer was loaded from a folder that has one.

        Args:
            save_directory: An existing folder.
            filename_prefix: Put in front of the file name with a hyphen.

        Returns:
            The path of the file written, if any.
        """
        if self.vocab_file is None:
            return ()
        source = Path(self.vocab_file)
        target = Path(save_directory) / (
            f"{filename_prefix}-" * bool(filename_prefix) + VOCAB_FILES_NAMES["vocab_file"]
        )
        if source.is_file():
            target.write_bytes(source.read_bytes())
            return (str(target),)
        logger.warning(
            f"{source} is gone; {save_directory} gets tokenizer.json alone, without the slow tokenizer's file."
        )
        return ()


__all__ = ["InternLM2TokenizerFast", "fast_backend"]
