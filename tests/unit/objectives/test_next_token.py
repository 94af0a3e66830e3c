"""Next-token prediction is cross entropy over shifted labels."""

import dataclasses
from collections.abc import Callable

import pytest
import torch

from blip3o.core.types import IGNORE_LABEL, Batch
from blip3o.models.unified import UnifiedModel
from blip3o.objectives.next_token import NextTokenConfig

MakeBatch = Callable[..., Batch]


@pytest.mark.parametrize("task", ["text", "image_to_text"])
def test_equals_a_plain_cross_entropy_over_shifted_labels(
    model: UnifiedModel, make_batch: MakeBatch, task: str
) -> None:
    batch = make_batch([1, 2, 3, 4], task)
    assert batch.labels is not None
    with torch.no_grad():
        hidden = model.text_states(batch.input_ids, batch.attention_mask, batch.prompt_features)
        logits = model.backbone.logits(hidden)
        loss = NextTokenConfig().build(model.config)(model, batch, 0)
    expected, right, count = 0.0, 0, 0
    for row in range(len(batch)):
        for place in range(1, batch.labels.shape[1]):
            label = int(batch.labels[row, place])
            if label != IGNORE_LABEL:
                guess = logits[row, place - 1]
                expected -= float(guess.log_softmax(-1)[label])
                right += int(guess.argmax()) == label
                count += 1
    assert float(loss.loss_sum) == pytest.approx(expected, rel=1e-5)
    assert loss.count == count
    assert float(loss.metrics["token_accuracy"][0]) == right


def test_certain_and_right_answers_cost_nothing(
    model: UnifiedModel, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = make_batch([1, 2], "text")
    assert batch.labels is not None
    asked = batch.labels[:, 1:]
    asked = asked[asked != IGNORE_LABEL]
    certain = 100.0 * torch.nn.functional.one_hot(asked, model.config.backbone.vocab_size)
    monkeypatch.setattr(model.backbone, "logits", lambda hidden: certain)
    loss = NextTokenConfig().build(model.config)(model, batch, 0)
    assert float(loss.loss_sum) < 1e-6
    assert float(loss.metrics["token_accuracy"][0]) == loss.count


def test_a_batch_with_nothing_to_learn_gives_zero_with_a_gradient(
    model: UnifiedModel, make_batch: MakeBatch
) -> None:
    batch = make_batch([1, 2], "text")
    assert batch.labels is not None
    empty = dataclasses.replace(batch, labels=torch.full_like(batch.labels, IGNORE_LABEL))
    loss = NextTokenConfig().build(model.config)(model, empty, 0)
    loss.loss_sum.backward()
    assert (float(loss.loss_sum.detach()), loss.count) == (0.0, 0.0)


def test_gradient_reaches_the_backbone_and_its_projector_only(
    model: UnifiedModel, make_batch: MakeBatch
) -> None:
    NextTokenConfig().build(model.config)(
        model, make_batch([1, 2], "image_to_text"), 0
    ).loss_sum.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == name.startswith("backbone."), name


def test_a_batch_without_labels_is_refused(model: UnifiedModel, make_batch: MakeBatch) -> None:
    with pytest.raises(ValueError, match="'text_to_image' batch needs labels"):
        NextTokenConfig().build(model.config)(model, make_batch([1]), 0)


def test_length_power_weighs_the_tokens_of_long_answers_less(
    model: UnifiedModel, make_batch: MakeBatch
) -> None:
    batch = make_batch([1, 2], "text")
    assert batch.labels is not None
    labels = torch.full_like(batch.labels, IGNORE_LABEL)
    answers = [(0, 1, 2), (0, 4, 1), (1, 1, 4)]  # row, first column, tokens
    for row, first, length in answers:
        labels[row, first : first + length] = batch.input_ids[row, first : first + length]
    batch = dataclasses.replace(batch, labels=labels)
    with torch.no_grad():
        logits = model.backbone.logits(model.text_states(batch.input_ids, batch.attention_mask))
        found = NextTokenConfig(length_power=0.5).build(model.config)(model, batch, 0)
    expected, count = 0.0, 0.0
    for row, first, length in answers:
        for place in range(first, first + length):
            guess = logits[row, place - 1].log_softmax(-1)
            expected -= float(guess[batch.input_ids[row, place]]) / length**0.5
            count += 1 / length**0.5
    assert float(found.loss_sum) == pytest.approx(expected, rel=1e-5)
    assert found.count == pytest.approx(count)
    assert found.metrics["token_accuracy"][1] == 7


@pytest.mark.parametrize("power", [-0.1, 1.1])
def test_a_length_power_out_of_range_is_refused(power: float) -> None:
    with pytest.raises(ValueError, match="length_power"):
        NextTokenConfig(length_power=power)
