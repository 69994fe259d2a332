"""Configuration of InternLM2, the language model of InternVL 1.5.

The published RoPE keys (`rope_theta`, `rope_scaling`) are read here and nowhere else.
"""

from typing import Any

from transformers import PretrainedConfig


ROPE_TYPES = ("default", "linear", "dynamic")


class RopeParameters(dict):
    """RoPE settings of a config, as one dict; edits in place are edits of the config.

    Args:
        config: The config.
        parameters: Its settings.
    """

    def __init__(self, config: "InternLM2Config", parameters: dict[str, Any]) -> None:
        super().__init__(parameters)
        self._config = config

    def __setitem__(self, name: str, value: Any) -> None:
        self.update({name: value})

    def __delitem__(self, name: str) -> None:
        self.pop(name)

    def __ior__(self, other: Any) -> "RopeParameters":
        self.update(other)
        return self

    def __reduce__(self) -> tuple:
        return dict, (dict(self),)

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Change some settings."""
        super().update(*args, **kwargs)
        self._config.rope_parameters = dict(self)

    def setdefault(self, name: str, default: Any = None) -> Any:
        """Return a setting, which becomes `default` if there is none."""
        if name not in self:
            self[name] = default
        return self[name]

    def pop(self, name: str, *default: Any) -> Any:
        """Remove a setting and return it."""
        value = super().pop(name, *default)
        self._config.rope_parameters = dict(self)
        return value

    def clear(self) -> None:
        """Remove all settings, which leaves the base as it is and no scaling."""
        super().clear()
        self._config.rope_parameters = None


class InternLM2Config(PretrainedConfig):
    """Sizes of an InternLM2; the defaults are InternLM2-Chat-20B as InternVL-Chat-V1-5 uses it.

    Args:
        vocab_size: Rows of the embedding and of the output head.
        hidden_size: Width of the decoder.
        intermediate_size: Width of the gated feed-forward layer.
        num_hidden_layers: Decoder layers.
        num_attention_heads: Query heads; must divide `hidden_size`.
        num_key_value_heads: Key/value heads, each shared by a group of query heads; None means one per query head.
        hidden_act: Activation of the gate.
        max_position_embeddings: Length in tokens beyond which dynamic RoPE scaling stretches the base.
        initializer_range: Standard deviation of freshly made weights.
        rms_norm_eps: Epsilon of RMSNorm.
        use_cache: Whether generation keeps keys and values by default.
        pad_token_id: Padding token.
        bos_token_id: Token that opens a text.
        eos_token_id: Token that ends a text (`</s>`; a chat turn ends with `<|im_end|>`, see generation_config.json).
        tie_word_embeddings: Always false: InternLM2 has an output head of its own.
        bias: Whether `wqkv` and `wo` have biases.
        rope_theta: Base of the rotary frequencies.
        rope_scaling: None, or a dict with `"type"` (or `"rope_type"`) in `linear`, `dynamic` and a `"factor"` of at
            least 1.
        **kwargs: Anything else a published config.json holds; kept and saved again. `rope_parameters`, Transformers
            5's name for both, goes before the two above.

    Raises:
        ValueError: If head counts do not divide, or `rope_scaling` is not one of the forms above.
    """

    model_type = "internlm2"
    base_config_key = "llm_config"
    keys_to_ignore_at_inference = ["past_key_values"]
    # How `tp_plan="auto"` divides the weights. `wqkv` is cut between key/value heads, whose number it must divide.
    base_model_tp_plan = {
        "layers.*.attention.wqkv": "colwise",
        "layers.*.attention.wo": "rowwise",
        "layers.*.feed_forward.w1": "colwise",
        "layers.*.feed_forward.w3": "colwise",
        "layers.*.feed_forward.w2": "rowwise",
    }
    # Transformers 5 stores `rope_parameters` and makes `rope_scaling` a view of it. Published files hold
    # `rope_scaling`, so here it is the other way round: this is the plain field, `rope_parameters` the view.
    rope_scaling = None

    def __init__(
        self,
        vocab_size: int = 92553,
        hidden_size: int = 6144,
        intermediate_size: int = 16384,
        num_hidden_layers: int = 48,
        num_attention_heads: int = 48,
        num_key_value_heads: int | None = 8,
        hidden_act: str = "silu",
        max_position_embeddings: int = 32768,
        initializer_range: float = 0.02,
        rms_norm_eps: float = 1e-5,
        use_cache: bool = True,
        pad_token_id: int | None = 2,
        bos_token_id: int | None = 1,
        eos_token_id: int | list[int] | None = 2,
        tie_word_embeddings: bool = False,
        bias: bool = False,
        rope_theta: float = 1_000_000,
        rope_scaling: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        num_key_value_heads = num_attention_heads if num_key_value_heads is None else num_key_value_heads
        for total, part, names in (
            (hidden_size, num_attention_heads, "hidden_size and num_attention_heads"),
            (num_attention_heads, num_key_value_heads, "num_attention_heads and num_key_value_heads"),
            (hidden_size // num_attention_heads, 2, "head_dim and 2 (rotary pairs)"),
        ):
            if total % part:
                raise ValueError(f"{names} are {total} and {part}; the first must be a multiple of the second.")
        if tie_word_embeddings:
            raise ValueError(
                "tie_word_embeddings is true, but InternLM2 has an output head of its own; set it to false."
            )
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        self.hidden_act = hidden_act
        self.max_position_embeddings = max_position_embeddings
        self.initializer_range = initializer_range
        self.rms_norm_eps = rms_norm_eps
        self.use_cache = use_cache
        self.bias = bias
        self.rope_theta = rope_theta
        self.rope_scaling = rope_scaling
        # Read once, so that a wrong entry is reported where it was written.
        _ = self.rope_type, self.rope_factor
        super().__init__(
            pad_token_id=pad_token_id,
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            tie_word_embeddings=tie_word_embeddings,
            **kwargs,
        )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def rope_type(self) -> str:
        """`"default"`, `"linear"` or `"dynamic"`, from either spelling of the key."""
        scaling = self.rope_scaling or {}
        rope_type = scaling.get("rope_type", scaling.get("type", "default"))
        if rope_type not in ROPE_TYPES:
            raise ValueError(
                f"rope_scaling has type {rope_type!r}; InternLM2 knows {', '.join(map(repr, ROPE_TYPES))}."
            )
        return rope_type

    @property
    def rope_factor(self) -> float:
        """How far `rope_type` stretches the positions; 1.0 without scaling."""
        factor = (self.rope_scaling or {}).get("factor", 1.0)
        if isinstance(factor, bool) or not isinstance(factor, (int, float)) or factor < 1:
            raise ValueError(f"rope_scaling has factor {factor!r}; expected a number of at least 1.")
        return float(factor)

    @property
    def rope_parameters(self) -> "RopeParameters":
        """`rope_theta` and `rope_scaling` in the one dict where Transformers 5 and engines look; never saved.

        Assigning a dict (None for no scaling), or editing this one in place, changes the two; values that they hold
        already do not change their spelling.
        """
        parameters = {"rope_theta": self.rope_theta, "rope_type": self.rope_type}
        return RopeParameters(
            self, parameters if self.rope_type == "default" else parameters | {"factor": self.rope_factor}
        )

    @rope_parameters.setter
    def rope_parameters(self, parameters: dict[str, Any] | None) -> None:
        if parameters == self.rope_parameters:
            return
        scaling = dict(parameters or {})
        self.rope_theta = scaling.pop("rope_theta", self.rope_theta)
        self.rope_scaling = scaling or None
        _ = self.rope_type, self.rope_factor
