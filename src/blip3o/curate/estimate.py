"""The requests and the money that a curation may need, before the first request."""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence

from blip3o.curate.config import CurateConfig
from blip3o.curate.draft import concerns
from blip3o.curate.models.openai import OpenAIModel
from blip3o.curate.stages import AskingStage
from blip3o.curate.stages.templates import TemplatesStage
from blip3o.remote.cost import Prices, estimate

_FEW = 0.9
"""Share of different sentences in a category below which an estimate warns."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageEstimate:
    """The most that one stage may ask for.

    Args:
        stage: name of the stage.
        model: name of the model.
        num_requests: most requests, without retries.
        cost: most money; None if the model runs in the process.
    """

    stage: str
    model: str
    num_requests: int
    cost: float | None


def estimated(config: CurateConfig) -> list[StageEstimate]:
    """Returns the most requests and money of each stage that asks a model.

    Each stage counts as if all drafts reached it, so repairs of few drafts are overestimated.
    """
    found: list[StageEstimate] = []
    for name, stage in zip(config.stage_names, config.stages, strict=True):
        if not isinstance(stage, AskingStage):
            continue
        model = config.model(stage.model)
        requests = stage.examples()
        cost = None
        if isinstance(model, OpenAIModel):
            prices = Prices(
                prompt=model.prompt_price,
                completion=model.completion_price,
                image=model.image_price,
            )
            cost = config.num_drafts * (estimate(requests, prices).most_cost or 0.0)
        found.append(
            StageEstimate(
                stage=name,
                model=stage.model,
                num_requests=config.num_drafts * len(requests),
                cost=cost,
            )
        )
    return found


def estimate_text(rows: Sequence[StageEstimate], config: CurateConfig) -> str:
    """Returns an estimate as a table."""
    lines = [f"{config.num_drafts:,} drafts; at most:"]
    for row in rows:
        cost = "no costs" if row.cost is None else f"{row.cost:.4g}"
        lines.append(f"  {row.stage:20s} {row.num_requests:>10,} requests to {row.model}  {cost}")
    total = sum(row.cost or 0.0 for row in rows)
    caps = [
        f"{name}={value:g}"
        for name, value in (("max_cost", config.max_cost), ("max_requests", config.max_requests))
        if value is not None
    ]
    lines.append(f"  in all {total:.4g}; {'cap: ' + ', '.join(caps) if caps else 'no cap'}")
    lines += _repeats(config)
    return "\n".join(lines)


def _repeats(config: CurateConfig) -> Iterator[str]:
    """Yields a warning for each category whose grammar is too small for its drafts."""
    drafts = config.plan()
    for name, stage in zip(config.stage_names, config.stages, strict=True):
        if not isinstance(stage, TemplatesStage):
            continue
        chosen = Counter(one.category for one in drafts if concerns(one, stage.categories))
        for category, number in chosen.items():
            expected = stage.num_expected(category, number)
            if expected < _FEW * number:
                yield (
                    f"  warning: {name} has about {expected:,.0f} different sentences for the "
                    f"{number:,} drafts of the category {category!r}"
                )
