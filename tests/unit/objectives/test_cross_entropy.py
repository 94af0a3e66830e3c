"""Cross entropy in chunks equals the plain one."""

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from blip3o.models.unified import UnifiedModel
from blip3o.objectives import cross_entropy
from blip3o.objectives.cross_entropy import token_losses

TOLERANCES = {
    torch.float32: {"rtol": 1e-5, "atol": 1e-5},
    torch.bfloat16: {"rtol": 2e-2, "atol": 3e-2},  # the gradient of each chunk is rounded
}


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_chunks_give_the_losses_and_gradients_of_all_logits_without_keeping_them(
    model: UnifiedModel, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    backbone = model.backbone
    vocabulary, width = backbone.config.vocab_size, backbone.config.hidden_size
    weight = backbone.decoder.embed_tokens.weight  # the tiny head is tied to it
    states = torch.randn(11, width, requires_grad=True)
    labels = torch.randint(vocabulary, (11,))
    factors = torch.rand(11)
    widest = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal widest
        widest = max([widest, *tensor.shape])
        return tensor

    def run() -> tuple[Tensor, ...]:
        autocast = torch.autocast("cpu", dtype, enabled=dtype != torch.float32)
        with saved_tensors_hooks(pack, lambda tensor: tensor), autocast:
            losses, are_right = token_losses(backbone, states, labels)
        return losses, are_right, *torch.autograd.grad(losses @ factors, (states, weight))

    plain = run()
    assert widest == vocabulary
    monkeypatch.setattr(cross_entropy, "_LOGITS_AT_ONCE", 4 * vocabulary + 1)
    widest = 0
    chunked = run()
    assert widest < vocabulary
    for got, expected in zip(chunked, plain, strict=True):
        torch.testing.assert_close(got, expected, **TOLERANCES[dtype])
    assert len(chunked[0]) == 11
