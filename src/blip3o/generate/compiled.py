"""The sampler for many images of one shape: compiled layers and, on CUDA, one graph for all.

A sampler of small batches spends its time launching kernels. A CUDA graph of all its steps is
launched once.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from blip3o.flow.solver import StepCallback
from blip3o.generate.images import follow_velocity, noise_levels, sample_features
from blip3o.models.unified import UnifiedModel

_MAX_GRAPHS = 4
"""Graphs that are kept; each holds the memory that its kernels work in."""
_WARM_UP_RUNS = 2


class CompiledSampler:
    """Does what `sample_features` does; the first call of a shape compiles and captures.

    Args:
        model: the model; its DiT's layers are compiled for sampling.
    """

    def __init__(self, model: UnifiedModel) -> None:
        model.dit.compile_sampling()
        self._graphs: OrderedDict[tuple[Any, ...], _Graph] = OrderedDict()

    @torch.no_grad()
    def __call__(
        self,
        model: UnifiedModel,
        condition: Tensor,
        noise: Tensor,
        *,
        num_inference_steps: int,
        guidance_scale: float,
        reference: Tensor | None = None,
        callback: StepCallback | None = None,
    ) -> Tensor:
        """Returns normalized features [B, N, K]; arguments as for `sample_features`."""
        # A graph does not stop for callbacks, and reads weights that stay where they are: not those
        # of a DiT that is offloaded or on a device of its own.
        places = {weight.device for weight in model.dit.parameters()}
        if not noise.is_cuda or callback is not None or places != {noise.device}:
            return sample_features(
                model,
                condition,
                noise,
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                reference=reference,
                callback=callback,
            )
        inputs = [condition, noise] if reference is None else [condition, noise, reference]
        # A graph reads fixed addresses: moved or reloaded weights need a new one.
        weights = tuple(weight.data_ptr() for weight in model.dit.parameters())
        forms = tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in inputs)
        key = (forms, num_inference_steps, guidance_scale, weights)
        if key not in self._graphs:
            while len(self._graphs) >= _MAX_GRAPHS:
                self._graphs.popitem(last=False)
            sigmas = noise_levels(model, num_inference_steps)
            levels = sigmas.to(noise.device)  # here: a capture may not copy from the host

            def run(condition: Tensor, noise: Tensor, reference: Tensor | None = None) -> Tensor:
                return follow_velocity(
                    model,
                    condition,
                    noise,
                    reference,
                    sigmas=sigmas,
                    levels=levels,
                    guidance_scale=guidance_scale,
                )

            self._graphs[key] = _Graph(run, inputs)
        self._graphs.move_to_end(key)
        return self._graphs[key](inputs)


class _Graph:
    """A function of tensors, captured once and replayed on other values of the same shapes."""

    def __init__(self, run: Callable[..., Tensor], inputs: list[Tensor]) -> None:
        self._run = run  # keeps alive what the graph reads
        self._inputs = [tensor.clone() for tensor in inputs]
        device = inputs[0].device
        with torch.cuda.device(device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # compiles, and lets libraries take their workspaces
                for _ in range(_WARM_UP_RUNS):
                    run(*self._inputs)
            torch.cuda.current_stream().wait_stream(stream)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._output = run(*self._inputs)

    def __call__(self, inputs: list[Tensor]) -> Tensor:
        for kept, given in zip(self._inputs, inputs, strict=True):
            kept.copy_(given)
        self._graph.replay()
        return self._output.clone()
