"""Fast drawing of many batches of one shape: compiled layers and, on CUDA, one graph of all steps.

With small batches, a sampler spends most of its time on launching kernels. A CUDA graph of all
steps is launched once.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from blip3o.flow.solver import StepCallback
from blip3o.generate.draw import draw, follow, noise_levels
from blip3o.models.generators.plan import Generator, Plan
from blip3o.models.unified import SamplingConfig

_MAX_GRAPHS = 4
"""Most graphs that are kept; each owns the memory that its kernels work in."""
_WARM_UP_RUNS = 2


class CompiledDraw:
    """Computes the same as `draw`. The first call with a shape compiles, and captures a graph.

    Args:
        generator: the model's generator; its layers are compiled for sampling.
    """

    def __init__(self, generator: Generator) -> None:
        generator.compile_sampling()
        self._generator = generator
        self._graphs: OrderedDict[Hashable, _Graph] = OrderedDict()

    @torch.no_grad()
    def __call__(
        self,
        plan: Plan,
        noise: Tensor,
        guidance_scale: float | Tensor,
        sampling: SamplingConfig,
        callback: StepCallback | None = None,
    ) -> Tensor:
        """Returns normalized features [B, N, K]; arguments as for `draw`."""
        weights = list(self._generator.parameters())
        # A graph cannot call back, and it reads weights at fixed addresses, so the generator must
        # neither be offloaded nor be on another device.
        is_here = {weight.device for weight in weights} == {noise.device}
        if not noise.is_cuda or callback is not None or not is_here:
            return draw(plan, noise, guidance_scale, sampling, callback)
        scales = [guidance_scale] if isinstance(guidance_scale, Tensor) else []
        inputs = [noise, *scales, *plan.tensors()]
        forms = tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in inputs)
        addresses = tuple(weight.data_ptr() for weight in weights)
        number = None if scales else guidance_scale
        key = (forms, sampling, number, addresses)
        if key not in self._graphs:
            while len(self._graphs) >= _MAX_GRAPHS:
                self._graphs.popitem(last=False)
            sigmas = noise_levels(sampling)
            levels = sigmas.to(noise.device)  # a capture may not copy from the host

            def run(noise: Tensor, *others: Tensor) -> Tensor:
                scale = others[0] if scales else guidance_scale
                given = plan.with_tensors(others[len(scales) :])
                return follow(given, noise, scale, sampling, sigmas, levels)

            self._graphs[key] = _Graph(run, inputs)
        self._graphs.move_to_end(key)
        return self._graphs[key](inputs)


class _Graph:
    """A function of tensors, captured once and replayed on other values of the same shapes."""

    def __init__(self, run: Callable[..., Tensor], inputs: Sequence[Tensor]) -> None:
        self._run = run  # keeps alive the tensors that the graph reads
        self._inputs = [tensor.clone() for tensor in inputs]
        device = inputs[0].device
        with torch.cuda.device(device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # compiles, and libraries allocate their workspaces
                for _ in range(_WARM_UP_RUNS):
                    run(*self._inputs)
            torch.cuda.current_stream().wait_stream(stream)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._output = run(*self._inputs)

    def __call__(self, inputs: Sequence[Tensor]) -> Tensor:
        for kept, given in zip(self._inputs, inputs, strict=True):
            kept.copy_(given)
        self._graph.replay()
        return self._output.clone()
