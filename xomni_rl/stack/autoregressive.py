"""The unified autoregressive model of X-Omni: a Qwen2 body with its own embeddings, adapter layers and head for images.

Ids below `vocab_size` are text. Ids from `vocab_size` on are multimodal: first the `image_vocab_size` image tokens, then
the special ones (`<SOM>`, `<EOM>`, `<IMAGE>`, …). The first `num_mm_adap_layers` and the last `num_mm_head_layers` layers
compute every position, but only multimodal positions keep what they computed; text passes them by unchanged.

Source: arXiv 2507.22058, section 3; tensor names as in the public checkpoint.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.qwen2.configuration_qwen2 import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RMSNorm, Qwen2RotaryEmbedding

from .prefix import PromptPass

if TYPE_CHECKING:
    from .incremental import ImageTokenSampler

Modality = Literal["text", "image"]


@strict
class XOmniConfig(Qwen2Config):
    """Qwen2's configuration with the fields of the public X-Omni checkpoint.

    Attributes:
        num_mm_adap_layers: layers at the bottom that only multimodal positions pass through.
        num_mm_head_layers: the same at the top.
        mm_vocab_size: rows of the multimodal embedding: image tokens and multimodal specials.
        image_vocab_size: how many of them are image tokens; they come first.
        mm_special_tokens: names of the multimodal specials, in the order of their ids.
        vision_config: where tokenizer and decoder of the full-size model lie, as the checkpoint says it.
    """

    model_type = "x-omni"

    num_mm_adap_layers: int = 4
    num_mm_head_layers: int = 4
    mm_vocab_size: int = 16448
    image_vocab_size: int = 16384
    mm_special_tokens: list[str] | None = None
    vision_config: dict | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.mm_special_tokens is None:
            self.mm_special_tokens = ["<SOM>", "<EOM>", "<IMAGE>"]
        if self.image_vocab_size > self.mm_vocab_size:
            raise ValueError(f"image_vocab_size {self.image_vocab_size} exceeds mm_vocab_size {self.mm_vocab_size}")
        if self.num_mm_adap_layers + self.num_mm_head_layers > self.num_hidden_layers:
            raise ValueError(
                f"num_mm_adap_layers {self.num_mm_adap_layers} + num_mm_head_layers {self.num_mm_head_layers} "
                f"exceed num_hidden_layers {self.num_hidden_layers}"
            )


class XOmniPreTrainedModel(PreTrainedModel):
    """What transformers must know of the family to load, shard and checkpoint it."""

    config_class = XOmniConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ("Qwen2DecoderLayer",)
    _skip_keys_device_placement = ("past_key_values",)
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True


class XOmniModel(XOmniPreTrainedModel):
    """Embeddings, layers and the two final norms."""

    def __init__(self, config: XOmniConfig) -> None:
        super().__init__(config)
        self.lm_embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.mm_embed_tokens = nn.Embedding(config.mm_vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([Qwen2DecoderLayer(config, i) for i in range(config.num_hidden_layers)])
        self.lm_norm = Qwen2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mm_norm = Qwen2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = Qwen2RotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.lm_embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.lm_embed_tokens = value

    def embed(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Embeds mixed ids.

        Args:
            input_ids: [N, T] int64; ids from `vocab_size` on are multimodal.
        Returns: embeddings [N, T, hidden]; is_mm [N, T, 1] bool, True at multimodal positions.
        """
        offset = self.config.vocab_size
        is_mm = (input_ids >= offset)[..., None]
        text = self.lm_embed_tokens(input_ids.clamp(max=offset - 1))
        image = self.mm_embed_tokens((input_ids - offset).clamp(min=0))
        return torch.where(is_mm, image, text), is_mm

    def is_mm_only(self, layer: int) -> bool:
        """Whether text positions pass the layer by unchanged."""
        last = self.config.num_hidden_layers - self.config.num_mm_head_layers
        return layer < self.config.num_mm_adap_layers or layer >= last

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        only_mm: bool = False,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Runs the layers.

        Args:
            input_ids: [N, T] int64; ids from `vocab_size` on are multimodal.
            attention_mask, position_ids, past_key_values, use_cache: as in `XOmniForCausalLM.forward`.
            only_mm: all ids are multimodal, so that nothing of text's part is computed, gradients included.
        Returns: hidden states [N, T, hidden] after the final norm, and the cache if `use_cache`.
        Raises: IndexError for a text id with `only_mm`.
        """
        text = self.config.vocab_size
        hidden, is_mm = (self.mm_embed_tokens(input_ids - text), None) if only_mm else self.embed(input_ids)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            position_ids = _positions(input_ids, attention_mask, past_key_values)
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=hidden,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        rotary = self.rotary_emb(hidden, position_ids)
        for i, layer in enumerate(self.layers):
            out = layer(
                hidden,
                attention_mask=mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                position_embeddings=rotary,
                **kwargs,
            )
            hidden = torch.where(is_mm, out, hidden) if is_mm is not None and self.is_mm_only(i) else out
        hidden = self.mm_norm(hidden) if is_mm is None else torch.where(is_mm, self.mm_norm(hidden), self.lm_norm(hidden))
        return BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=past_key_values if use_cache else None)


class XOmniForCausalLM(XOmniPreTrainedModel, GenerationMixin):
    """The model with its text head and its image head.

    `forward(..., modality="text")` gives logits [N, T, vocab_size] over text ids; `modality="image"` gives logits
    [N, T, image_vocab_size] over image tokens alone, which is what a policy over images needs and 12× cheaper than both
    at the published sizes. Add `config.vocab_size` to an image token to get its full id.

    Attributes:
        sampling_backend: of `torch.compile`, for sampling with a compiled step; None = not compiled. See `compile_sampling`.
    """

    sampling_backend: str | None = None

    def __init__(self, config: XOmniConfig) -> None:
        super().__init__(config)
        self.model = XOmniModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.mm_head = nn.Linear(config.hidden_size, config.mm_vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.lm_head = new_embeddings

    def head(self, hidden: Tensor, modality: Modality) -> Tensor:
        """Logits of one modality.

        Args:
            hidden: [..., hidden_size] after the final norm.
            modality: "text" or "image".
        Returns: [..., vocab_size] or [..., image_vocab_size].
        Raises: ValueError for another modality.
        """
        if modality == "text":
            return self.lm_head(hidden)
        if modality == "image":
            return nn.functional.linear(hidden, self.mm_head.weight[: self.config.image_vocab_size])
        raise ValueError(f"modality must be 'text' or 'image', not {modality!r}")

    @property
    def num_ids(self) -> int:
        """Ids of a prompt are below it."""
        return self.config.vocab_size + self.config.mm_vocab_size

    def image_features(self, input_ids: Tensor, attention_mask: Tensor, tokens: Tensor, group_size: int = 1) -> Tensor:
        """Hidden states [N, T, hidden] that predict each of `tokens`; see `xomni_rl.stack.family.TokenModel`."""
        prompts = PromptPass()
        read = self.model(input_ids, attention_mask, past_key_values=prompts, use_cache=True)
        hidden = read.last_hidden_state[:, -1:].repeat_interleave(group_size, 0)
        if tokens.shape[1] > 1:
            cache = prompts.followed_by(group_size)
            seen = attention_mask.repeat_interleave(group_size, 0)
            mask = torch.cat([seen, seen.new_ones(len(tokens), tokens.shape[1] - 1)], 1)
            ids = tokens[:, :-1] + self.config.vocab_size
            rest = self.model(ids, mask, past_key_values=cache, use_cache=True, only_mm=True)
            hidden = torch.cat([hidden, rest.last_hidden_state], 1)
        return hidden

    def image_logits(self, features: Tensor) -> Tensor:
        """Logits [..., image_vocab_size] of hidden states [..., hidden]."""
        return self.head(features, "image")

    def image_sampler(self, *arguments: Any, **options: Any) -> ImageTokenSampler:
        """A sampler of this model, compiled if asked for; arguments as `ImageTokenSampler` has them after the model."""
        from .incremental import IncrementalSampler  # these read this module
        from .static import StaticSampler

        sampler: type[ImageTokenSampler] = IncrementalSampler if self.sampling_backend is None else StaticSampler
        return sampler(self, *arguments, **options)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        modality: Modality = "text",
        logits_to_keep: int | Tensor = 0,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Runs the model.

        Args:
            input_ids: [N, T] int64, text and multimodal ids mixed.
            attention_mask: [N, T + cached] 1 where a position counts.
            position_ids: [N, T]; from the mask where not given, so that left padding is free.
            modality: which head; see the class.
            logits_to_keep: the last so many positions (0 = all), or the positions themselves.
            labels: [N, T] ids of the chosen modality's own vocabulary, -100 = not counted; shifted here.
        Returns: logits, the cache if `use_cache`, and the mean cross-entropy in nats if labels are given.
        """
        outputs = self.model(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.head(hidden[:, kept], modality)
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=outputs.past_key_values)


def _positions(input_ids: Tensor, attention_mask: Tensor | None, cache: Cache | None) -> Tensor:
    """Position of every id, counted over unmasked positions. Returns [N, T] int64 ([1, T] without a mask)."""
    seen = cache.get_seq_length() if cache is not None else 0
    length = input_ids.shape[1]
    if attention_mask is None or attention_mask.dim() != 2:
        return torch.arange(seen, seen + length, device=input_ids.device)[None]
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]


AutoConfig.register("x-omni", XOmniConfig)
AutoModelForCausalLM.register(XOmniConfig, XOmniForCausalLM)
