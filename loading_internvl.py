"""Strict loading: a checkpoint whose weights are not the model's is refused, with the likely cause."""

import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open


# Buffers that old releases saved, and that are computed.
COMPUTED = re.compile(r"(rotary_emb\.inv_freq|position_ids)$")
# What names of weights say about the cause; the first that is found counts.
CAUSES = (
    (r"lora_[AB]\.|\.base_layer\.", "they hold LoRA adapters that are not merged: merge them and save the result"),
    (
        r"^(mlp2|gating|pooling_before_gating)\.",
        "they are InternVL3.5-Flash's, whose router and second projector this model lacks: pass strict=False to drop "
        "both, so that each tile takes all its image tokens",
    ),
    (
        r"\.experts\.(\d+\.|gate_up_proj|down_proj)",
        "this release of Transformers does not fuse the experts of a language model inside another model: use a later "
        "release, or 4.57",
    ),
    (r"_ve\.|_moe\.|^vision_model\.", "they are another architecture's under this name, such as Mono-InternVL's"),
    (
        r"^language_model\.",
        "the language model is not the one that llm_config describes, or this release of Transformers builds it "
        "differently",
    ),
)


def check_loaded(source: Any, loading_info: dict[str, Any]) -> None:
    """Refuse a model whose weights were not all found, or not all used.

    Args:
        source: What was loaded, for the message.
        loading_info: What Transformers reports with `output_loading_info=True`.

    Raises:
        ValueError: If weights are missing or unexpected.
    """
    found = {name: _weights(loading_info.get(f"{name}_keys", ())) for name in ("missing", "unexpected")}
    if not any(found.values()):
        return
    problems = " and ".join(f"{len(keys)} {name} ({_some(keys)})" for name, keys in found.items() if keys)
    keys = [*found["unexpected"], *found["missing"]]
    causes = [cause for pattern, cause in CAUSES if any(re.search(pattern, key) for key in keys)]
    cause = causes[0] if causes else "they are another architecture's under this name"
    raise ValueError(
        f"The weights of {source} do not fit the model: {problems}. Probably {cause}. "
        "strict=False loads them all the same: missing weights are random then, unexpected ones dropped."
    )


@contextmanager
def naming_broken_files(source: Any) -> Iterator[None]:
    """Name the file that is damaged where weights cannot be read; Transformers does not say which it is.

    Args:
        source: The folder that is loaded.

    Raises:
        ValueError: If a file of weights in it is cut off or no safetensors.
    """
    try:
        yield
    except (SafetensorError, OSError) as error:
        is_folder = isinstance(source, (str, os.PathLike)) and os.path.isdir(source)
        for file in sorted(Path(source).glob("*.safetensors")) if is_folder else ():
            if problem := _damage(file):
                raise ValueError(
                    f"{file} is damaged ({problem}); expected whole weights: fetch or write the file again."
                ) from error
        raise


def _damage(file: Path) -> str:
    try:
        with safe_open(file, framework="pt"):
            return ""
    except (SafetensorError, OSError) as error:
        return str(error)


def add_stop(generation_config: Any, stop_token_id: int | None) -> None:
    """Let `generate` stop where answers end, as `chat` does.

    Published generation configs say the language model's own end token, which in some of them ends texts, not turns.

    Args:
        generation_config: The model's, changed in place.
        stop_token_id: Id of the token that ends an answer; None if it is not known.
    """
    found = generation_config.eos_token_id
    stops = [] if found is None else list(found) if isinstance(found, (list, tuple)) else [found]
    if stop_token_id is not None and stop_token_id not in stops:
        generation_config.eos_token_id = [*stops, stop_token_id]


def _weights(keys: Collection[str]) -> list[str]:
    return sorted(key for key in keys if not COMPUTED.search(key))


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (", …" if len(keys) > 3 else "")
