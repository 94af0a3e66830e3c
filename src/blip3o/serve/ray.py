"""The server as a deployment of Ray Serve: replicas on a cluster, as many as the requests need.

    serve run blip3o.serve.ray:app model=pocket max_replicas=4

Ray Serve listens, distributes requests, and starts, checks, drains and replaces replicas. A replica
is one engine with the application of `blip3o serve`, without the page: the visits of a page belong
to one server.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

from blip3o.core.bounds import Count, NotNegative, Positive
from blip3o.core.choices import (
    PrecisionName,
    check_offload,
    check_precision,
    check_quantization,
)
from blip3o.core.config import from_dict, override
from blip3o.core.errors import UsageError
from blip3o.serve.config import ServeConfig
from blip3o.weights.names import check_name

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve import Application

_OF_THE_COMMAND = (
    "port",
    "workers",
    "max_connections",
    "header_timeout_s",
    "read_timeout_s",
    "max_upload_bytes",
    "no_page",
)
"""Settings of `ServeConfig` that only `blip3o serve` follows: Ray listens, and there is no page."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RayServeConfig:
    """Settings of a deployment.

    Args:
        model: "pocket", a model folder that every machine has, or a hub id.
        device: "auto" or a torch device.
        dtype: "auto", "fp32", "bf16" or "fp16".
        revision: branch, tag or commit of a hub id.
        overrides: changes of the model's config, as "path.to.field=value".
        quantize: "int8" or "int4" for the backbone's matrices.
        offload: "none", "model" or "sequential".
        num_cpus: CPUs that a replica reserves, and its computing threads.
        num_gpus: GPUs that a replica reserves; 0.5 puts two replicas on one GPU, which must hold
            both: Ray counts shares and does not limit memory.
        min_replicas: replicas without any requests.
        max_replicas: most replicas.
        target_ongoing_requests: requests per replica, waiting ones included, that the number of
            replicas follows. The default is one full batch of images.
        max_ongoing_requests: most requests that a replica gets at once. Further ones wait outside
            of the replicas, where a new replica can take them.
        max_queued_requests: requests that may wait so; beyond, Ray Serve answers 503.
        look_back_period_s: time over which requests are averaged to decide about replicas.
        upscale_delay_s: time for which more replicas must be needed before one starts.
        downscale_delay_s: time for which fewer must be needed before one ends. A replica that ends
            gets no new requests, and has `server.drain_timeout_s` for those it has.
        health_check_period_s: time between two checks of a replica.
        health_check_timeout_s: longest answer to a check. A replica whose engine has failed, or
            that fails several checks, is replaced.
        server: limits of each replica, the options of `blip3o serve`. `host` is the address of
            Ray's proxies, which decides about the host names that requests may use.

    Raises:
        UsageError: for an unknown model or mode, numbers that exclude each other, or a setting of
            `server` that has no effect here.
    """

    model: str = "pocket"
    device: str = "auto"
    dtype: PrecisionName = "auto"
    revision: str | None = None
    overrides: tuple[str, ...] = ()
    quantize: str | None = None
    offload: str = "none"
    num_cpus: Positive = 1.0
    num_gpus: NotNegative = 0.0
    min_replicas: Count = 1
    max_replicas: Count = 1
    target_ongoing_requests: Positive = 8.0
    max_ongoing_requests: Count = 16
    max_queued_requests: Count = 256
    look_back_period_s: Positive = 30.0
    upscale_delay_s: NotNegative = 30.0
    downscale_delay_s: NotNegative = 600.0
    health_check_period_s: Positive = 10.0
    health_check_timeout_s: Positive = 30.0
    server: ServeConfig = dataclasses.field(default_factory=ServeConfig)

    def __post_init__(self) -> None:
        check_name(self.model)
        check_precision(self.dtype)
        check_offload(self.offload)
        if self.quantize is not None:
            check_quantization(self.quantize)
        if self.min_replicas > self.max_replicas:
            raise UsageError(
                f"min_replicas={self.min_replicas} exceeds max_replicas={self.max_replicas}"
            )
        if self.target_ongoing_requests > self.max_ongoing_requests:
            raise UsageError(
                f"target_ongoing_requests={self.target_ongoing_requests:g} is never reached: "
                f"max_ongoing_requests={self.max_ongoing_requests}"
            )
        if self.num_gpus > 1 and self.num_gpus % 1:
            raise UsageError(f"num_gpus={self.num_gpus:g}: Ray shares one GPU, or gives whole ones")
        usual = ServeConfig()
        for name in _OF_THE_COMMAND:
            if getattr(self.server, name) != getattr(usual, name):
                raise UsageError(f"server.{name} has no effect under Ray Serve: leave it out")


def app(arguments: Mapping[str, object]) -> "Application":
    """Returns the application that `serve run blip3o.serve.ray:app NAME=VALUE ...` starts.

    Args:
        arguments: settings of `RayServeConfig` by name, such as "max_replicas" or "server.max_n";
            those of a file of Ray Serve (`args:`) may also be nested.

    Raises:
        ClickException: for wrong settings; the command `serve` prints it as one line.
    """
    import click

    texts = {name: value for name, value in arguments.items() if isinstance(value, str)}
    others = {name: value for name, value in arguments.items() if name not in texts}
    try:
        config = from_dict(RayServeConfig, others)
        return deployment(override(config, [f"{name}={text}" for name, text in texts.items()]))
    except UsageError as error:
        raise click.ClickException(str(error)) from error


def deployment(config: RayServeConfig) -> "Application":
    """Returns an application for `ray.serve.run`.

    Args:
        config: the settings.

    Raises:
        UsageError: if Ray Serve or the server's libraries are missing.
    """
    try:
        from ray import serve

        import blip3o.serve.http.server  # noqa: F401
    except ImportError as error:
        raise UsageError(f"{error.name} is missing: pip install 'blip3o[ray]'") from error
    options = serve.deployment(
        name="blip3o",
        ray_actor_options={"num_cpus": config.num_cpus, "num_gpus": config.num_gpus},
        max_ongoing_requests=config.max_ongoing_requests,
        max_queued_requests=config.max_queued_requests,
        autoscaling_config={
            "min_replicas": config.min_replicas,
            "max_replicas": config.max_replicas,
            "target_ongoing_requests": config.target_ongoing_requests,
            "look_back_period_s": config.look_back_period_s,
            "upscale_delay_s": config.upscale_delay_s,
            "downscale_delay_s": config.downscale_delay_s,
        },
        graceful_shutdown_timeout_s=config.server.drain_timeout_s,
        health_check_period_s=config.health_check_period_s,
        health_check_timeout_s=config.health_check_timeout_s,
    )
    return options(serve.ingress()(Replica)).bind(config)


class Replica:
    """One engine and its application; Ray Serve calls the methods.

    Args:
        config: the settings.

    Raises:
        UsageError: if the model cannot be loaded or the engine does not start.
    """

    def __init__(self, config: RayServeConfig) -> None:
        import torch

        from blip3o.generate.exact import steady_kernels
        from blip3o.generate.pipeline import Blip3oPipeline
        from blip3o.serve.http.service import Service, name_for_clients

        steady_kernels()
        torch.set_num_threads(1)  # of this thread; the CPUs belong to the engine
        pipe = Blip3oPipeline.from_pretrained(
            config.model,
            device=config.device,
            dtype=config.dtype,
            revision=config.revision,
            overrides=config.overrides,
            quantize=config.quantize,
            offload=config.offload,
        )
        num_threads = max(1, int(config.num_cpus))
        name = name_for_clients(config.model)
        self._service = Service([pipe], name, config.server, num_threads)
        self._service.start()

    def __serve_build_asgi_app__(self) -> "FastAPI":
        """Returns the application that answers the requests."""
        from blip3o.serve.http.app import build_app
        from blip3o.serve.http.hosts import HostNames
        from blip3o.serve.http.server import api_keys

        config = self._service.config
        keys = api_keys(config)
        names = HostNames(config.host, config.allowed_host, has_keys=bool(keys))
        return build_app(self._service, keys, names)

    def check_health(self) -> None:
        """Raises `RuntimeError` if the engine has failed, so that this replica is replaced."""
        if not self._service.is_live:
            raise RuntimeError("the engine has stopped; the log of this replica says why")

    def __del__(self) -> None:
        """Stops the engine, after Ray Serve has waited for the requests."""
        if hasattr(self, "_service"):  # not if the model could not be loaded
            self._service.stop()
