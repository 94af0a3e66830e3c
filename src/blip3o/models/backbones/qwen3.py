"""Qwen3 with an image projector: the language side of the model.

The layers are transformers' own `Qwen3Model`; this adapter adds what BLIP3-o needs around them:
a projector for image features, embeddings as input, left-padded rows with positions that start
at each row's first real token, and a cache that can be filled without gradient.
"""

import dataclasses
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers.cache_utils import Cache


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen3BackboneConfig:
    """Sizes of a Qwen3 decoder and of the projector in front of it.

    Args:
        vocab_size: number of token embeddings (V).
        hidden_size: width (D).
        intermediate_size: width inside the MLPs.
        num_layers: decoder layers.
        num_heads: query heads.
        num_kv_heads: key/value heads.
        head_dim: width of a head.
        image_token_id: id of the placeholder that image features replace.
        image_channels: channels (C) of the image features the projector takes.
        max_positions: longest sequence the model is meant for.
        rope_theta: base of the rotary frequencies.
    """

    kind: str = "qwen3"
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    image_token_id: int
    image_channels: int
    max_positions: int = 512
    rope_theta: float = 1_000_000.0

    @classmethod
    def tiny(cls) -> "Qwen3BackboneConfig":
        """Returns the smallest useful config, for tests."""
        return cls(
            vocab_size=320,
            hidden_size=16,
            intermediate_size=32,
            num_layers=2,
            num_heads=2,
            num_kv_heads=1,
            head_dim=8,
            image_token_id=5,
            image_channels=16,
        )

    def build(self) -> "Qwen3Backbone":
        """Returns the backbone with fresh weights."""
        return Qwen3Backbone(self)


class Qwen3Backbone(nn.Module):
    """Token ids and image features to hidden states, and hidden states to vocabulary logits.

    Args:
        config: sizes.
    """

    def __init__(self, config: Qwen3BackboneConfig) -> None:
        from transformers.models.qwen3.configuration_qwen3 import Qwen3Config
        from transformers.models.qwen3.modeling_qwen3 import Qwen3Model

        super().__init__()
        self.config = config
        self.decoder = Qwen3Model(
            Qwen3Config(
                vocab_size=config.vocab_size,
                hidden_size=config.hidden_size,
                intermediate_size=config.intermediate_size,
                num_hidden_layers=config.num_layers,
                num_attention_heads=config.num_heads,
                num_key_value_heads=config.num_kv_heads,
                head_dim=config.head_dim,
                max_position_embeddings=config.max_positions,
                rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
                tie_word_embeddings=True,
            )
        )
        self.projector = nn.Sequential(
            nn.Linear(config.image_channels, config.hidden_size),
            nn.GELU(),
            nn.Linear(config.hidden_size, config.hidden_size),
        )

    def embed(self, input_ids: Tensor, image_features: Tensor | None = None) -> Tensor:
        """Returns the input embeddings, with projected image features at their placeholders.

        Args:
            input_ids: [B, T].
            image_features: [M, N, C] of all pictures, in the order of their placeholders.

        Raises:
            ValueError: if placeholders and feature tokens differ in number.
        """
        embeds = self.decoder.embed_tokens(input_ids)
        is_image = input_ids == self.config.image_token_id
        num_tokens = 0 if image_features is None else image_features.shape[:2].numel()
        if int(is_image.sum()) != num_tokens:
            raise ValueError(
                f"the prompts hold {int(is_image.sum())} image placeholders, "
                f"the pictures give {num_tokens} feature tokens"
            )
        if image_features is None:
            return embeds
        tokens = self.projector(image_features).flatten(0, 1).to(embeds.dtype)
        return embeds.masked_scatter(is_image.unsqueeze(-1), tokens)

    def forward(
        self, embeds: Tensor, attention_mask: Tensor, cache: "Cache | None" = None
    ) -> Tensor:
        """Returns the hidden states after the final norm, [B, T, D].

        Args:
            embeds: input embeddings of the new positions, [B, T, D].
            attention_mask: True for real tokens of the whole sequence, cached positions included,
                [B, past + T]; padding may be on either side.
            cache: keys and values of earlier positions; the new ones are added to it.
        """
        num_new = embeds.shape[1]
        positions = (attention_mask.long().cumsum(1) - 1).clamp_min(0)[:, -num_new:]
        output = self.decoder(
            inputs_embeds=embeds,
            attention_mask=None if bool(attention_mask.all()) else attention_mask.long(),
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return output.last_hidden_state

    def new_cache(self) -> "Cache":
        """Returns an empty key/value cache for `forward`."""
        from transformers.cache_utils import DynamicCache

        return DynamicCache()

    def logits(self, hidden: Tensor) -> Tensor:
        """Returns logits [..., V] of hidden states [..., D]; the head is the embedding table."""
        return nn.functional.linear(hidden, self.decoder.embed_tokens.weight)
