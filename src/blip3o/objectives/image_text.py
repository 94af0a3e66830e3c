"""Training of the image encoder: a contrastive loss on captions, and dense losses on its tokens.

With the contrastive loss alone, tokens hold little about the positions of objects. SigLIP 2 adds
captions of regions. Our scenes have exact positions, so each token predicts the object that covers
it, the object's center and size, and the pixels of its own patch.
"""

import dataclasses
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from blip3o.core.bounds import Count, NotNegative
from blip3o.core.types import Batch, LossOutput
from blip3o.models.unified import UnifiedModel, UnifiedModelConfig
from blip3o.nn.transformer import TransformerBlock
from blip3o.objectives import RegionLabels, SampleKind


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageTextConfig:
    """Training of the image encoder; the heads and the text tower are used only in training.

    Args:
        tasks: tasks of the batches to which the loss applies.
        weight: factor of this loss in the sum of all losses.
        text_size: width of the text tower.
        text_layers: transformer layers of the text tower.
        text_heads: attention heads of the text tower.
        embedding_size: width of the joint embedding.
        things: names of the object labels.
        colors: names of the color labels.
        contrastive_weight: factor of the sigmoid contrastive loss.
        region_weight: factor of the losses on the object that covers each token.
        pixel_weight: factor of the regression of each token's pixels.
        pixel_px: side of the patch of pixels that a token predicts; the image is averaged down to
            this resolution.
    """

    kind: str = "image_text"
    tasks: tuple[str, ...] = ("contrastive",)
    weight: NotNegative = 1.0
    text_size: Count = 128
    text_layers: Count = 2
    text_heads: Count = 4
    embedding_size: Count = 128
    things: tuple[str, ...]
    colors: tuple[str, ...]
    contrastive_weight: NotNegative = 1.0
    region_weight: NotNegative = 1.0
    pixel_weight: NotNegative = 1.0
    pixel_px: Count = 12

    def build(self, model_config: UnifiedModelConfig) -> "ImageText":
        """Returns the objective for a model."""
        return ImageText(self, model_config)


class ImageText(nn.Module):
    """The training heads of the image encoder, and their loss.

    Args:
        config: sizes and weights.
        model_config: config of the model to train.

    Reference:
        SigLIP (arXiv 2303.15343) for the sigmoid loss, with its initial scale 10 and bias -10.
    """

    needs_pixels: Final = True
    samples: Final[SampleKind | None] = None

    def __init__(self, config: ImageTextConfig, model_config: UnifiedModelConfig) -> None:
        super().__init__()
        self.config = config
        self.tasks = config.tasks
        self.weight = config.weight
        self.regions = RegionLabels(config.things, config.colors)
        self.grid = model_config.image_encoder.grid
        channels, size = model_config.image_encoder.num_channels, config.text_size
        self.token_embedding = nn.Embedding(model_config.backbone.vocab_size, size)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        self.positions = nn.Parameter(torch.randn(model_config.backbone.max_positions, size) * 0.02)
        self.text_layers = nn.ModuleList(
            TransformerBlock(size, config.text_heads) for _ in range(config.text_layers)
        )
        self.text_out = nn.Linear(size, config.embedding_size)
        self.image_norm = nn.LayerNorm(channels)
        self.image_query = nn.Linear(channels, 1)
        self.image_out = nn.Linear(channels, config.embedding_size)
        self.logit_scale = nn.Parameter(torch.tensor([10.0]).log())  # [1]: FSDP shards no scalars
        self.logit_bias = nn.Parameter(torch.tensor([-10.0]))
        self.thing_head = nn.Linear(channels, len(config.things) + 1)
        self.color_head = nn.Linear(channels, len(config.colors) + 1)
        self.box_head = nn.Linear(channels, 3)
        self.pixel_head = nn.Linear(channels, 3 * config.pixel_px**2)

    def count(self, batch: Batch) -> float:
        """Returns the number of images."""
        return float(len(batch))

    def forward(self, model: UnifiedModel, batch: Batch, seed: int) -> LossOutput:
        """Returns the loss of a batch of images, captions and ground-truth regions.

        Raises:
            ValueError: if the batch has no target pixels or no regions.
        """
        del seed  # the loss has no randomness
        if batch.target_pixels is None or batch.regions is None:
            raise ValueError(f"a {batch.task!r} batch needs target pixels and regions")
        features = model.encode_images(batch.target_pixels).float()
        contrastive, right = self._contrastive(features, batch)
        region, things_right, num_things = self._region(features, batch.regions)
        pixel = self._pixel(features, batch.target_pixels)
        config, count = self.config, self.count(batch)
        total = (
            config.contrastive_weight * contrastive
            + config.region_weight * region
            + config.pixel_weight * pixel
        )
        metrics = {
            "contrastive_loss": (contrastive.detach() * count, count),
            "region_loss": (region.detach() * count, count),
            "pixel_loss": (pixel.detach() * count, count),
            "retrieval_accuracy": (right, count),
            "token_thing_accuracy": (things_right, num_things),
        }
        return LossOutput(loss_sum=total * count, count=count, metrics=metrics)

    def _contrastive(self, features: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        tokens = self.image_norm(features)
        share = self.image_query(tokens).softmax(1)
        image = functional.normalize(self.image_out((share * tokens).sum(1)), dim=-1)
        text = functional.normalize(self._embed_text(batch), dim=-1)
        logits = image @ text.T * self.logit_scale.exp() + self.logit_bias
        # Images with equal captions are positives: scenes often share a short caption.
        same = (batch.input_ids[:, None] == batch.input_ids[None]).all(-1)
        sign = same.to(logits.dtype) * 2 - 1
        loss = -functional.logsigmoid(sign * logits).sum() / len(logits)
        right = same.gather(1, logits.detach().argmax(1, keepdim=True)).sum()
        return loss, right

    def _embed_text(self, batch: Batch) -> Tensor:
        mask = batch.attention_mask
        hidden = self.token_embedding(batch.input_ids) + self.positions[: mask.shape[1]]
        for layer in self.text_layers:
            hidden = layer(hidden, mask=mask[:, None, None, :])
        mean = (hidden * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)
        return self.text_out(mean)

    def _region(self, features: Tensor, regions: Tensor) -> tuple[Tensor, Tensor, float]:
        thing, color, box, covered = region_targets(regions, self.grid, len(self.config.things))
        color = torch.where(covered, color, len(self.config.colors))
        thing_logits = self.thing_head(features)
        label_loss = functional.cross_entropy(thing_logits.mT, thing, reduction="none")
        colors = self.color_head(features)
        label_loss = label_loss + functional.cross_entropy(colors.mT, color, reduction="none")
        boxes = self.box_head(features)
        box_loss = functional.smooth_l1_loss(boxes, box, reduction="none", beta=0.1)
        # Most tokens are empty and easy to predict. Separate means keep them from outweighing the
        # objects.
        num_covered = covered.sum().clamp_min(1)
        num_empty = (~covered).sum().clamp_min(1)
        loss = ((label_loss + 2 * box_loss.sum(-1)) * covered).sum() / num_covered
        loss = loss + (label_loss * ~covered).sum() / num_empty
        right = ((thing_logits.detach().argmax(-1) == thing) & covered).sum()
        return loss, right, float(num_covered)

    def _pixel(self, features: Tensor, pixels: Tensor) -> Tensor:
        side, patch = self.grid, self.config.pixel_px
        small = functional.adaptive_avg_pool2d(pixels, side * patch)
        blocks = small.unflatten(3, (side, patch)).unflatten(2, (side, patch))
        target = blocks.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        return functional.smooth_l1_loss(self.pixel_head(features), target, beta=0.1)


def region_targets(
    regions: Tensor, grid: int, num_things: int, min_cover: float = 0.1
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the targets of each token of a grid: the object that covers it most.

    Args:
        regions: objects [B, R, 5] as (x, y, size, thing, color): positions and sizes in [0, 1], and
            labels. The thing -1 marks an unused row.
        grid: tokens along one side (G).
        num_things: number of thing labels, which is also the label of an empty token.
        min_cover: share of a token's area that an object's box must cover.

    Returns:
        Thing labels [B, G * G]; color labels [B, G * G]; the object's center relative to the
        token's center and its size, in token widths, [B, G * G, 3]; whether each token is covered,
        bool [B, G * G].
    """
    centers = (torch.arange(grid, device=regions.device) + 0.5) / grid
    token_y, token_x = torch.meshgrid(centers, centers, indexing="ij")
    token_x, token_y = token_x.flatten(), token_y.flatten()
    x, y, size, thing, color = regions.unsqueeze(2).unbind(-1)  # [B, R, 1] each
    half = 0.5 / grid
    across = torch.minimum(x + size / 2, token_x + half) - torch.maximum(
        x - size / 2, token_x - half
    )
    down = torch.minimum(y + size / 2, token_y + half) - torch.maximum(y - size / 2, token_y - half)
    cover = across.clamp_min(0) * down.clamp_min(0) * grid**2 * (thing >= 0)  # [B, R, G * G]
    best, owner = cover.max(1)
    covered = best >= min_cover

    def of_owner(values: Tensor) -> Tensor:
        return values.expand_as(cover).gather(1, owner[:, None]).squeeze(1)

    thing_label = torch.where(covered, of_owner(thing).long(), num_things)
    across, down = (of_owner(x) - token_x) * grid, (of_owner(y) - token_y) * grid
    box = torch.stack([across, down, of_owner(size) * grid], dim=-1)
    return thing_label, of_owner(color).long().clamp_min(0), box, covered
