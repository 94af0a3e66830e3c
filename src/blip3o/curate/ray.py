"""Runs a curation on a Ray cluster: workers that do the same as processes started by hand.

The workers share the folder of the run, and its locks divide the work. So nothing but the settings
passes through Ray. It finds the machines, starts the workers, and replaces those that die.
"""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from blip3o.core.errors import PreemptedError, UsageError, first_line
from blip3o.core.log import say
from blip3o.curate.config import CurateConfig
from blip3o.curate.draft import Draft
from blip3o.curate.models import Lost
from blip3o.curate.run import SETTINGS, Curation

_REPLACEMENTS = 20
"""Times that one worker is replaced. A unit that kills each worker must not do so for ever."""
_CONNECT_S = 10.0
"""Longest wait for a connection to the cluster."""


def run_on_ray(curation: Curation, num_workers: int) -> list[Draft]:
    """Does the work that is left on the cluster that RAY_ADDRESS names, or on this machine.

    Args:
        curation: the run; every machine of the cluster has its folder under the same path.
        num_workers: workers, one CPU each; those for which there is no CPU wait for one.

    Returns:
        All drafts after the last stage.

    Raises:
        UsageError: if Ray is missing or its cluster cannot be reached, a machine lacks the folder,
            or for the reasons of `Curation.run`.
        PreemptedError: if the workers died too often, or for the reasons of `Curation.run`.
    """
    try:
        import ray
    except ImportError as error:
        raise UsageError("--ray needs ray; install it: pip install 'blip3o[ray]'") from error
    with _cluster():
        worker = ray.remote(max_retries=_REPLACEMENTS, scheduling_strategy="SPREAD")(_work)
        run = (curation.config, curation.out.absolute(), curation.lost)
        left = [worker.remote(*run, Path.cwd()) for _ in range(num_workers)]
        while left:
            done, left = ray.wait(left)
            try:
                ray.get(done)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error
            except ray.exceptions.RayError as error:  # the other workers do what it left
                say(f"a worker died {_REPLACEMENTS + 1} times: {first_line(error)}")
    drafts = curation.drafts()
    if drafts is None:
        raise PreemptedError("all workers died; the same command does the rest")
    return drafts


@contextmanager
def _cluster() -> Iterator[None]:
    """Connects to the cluster that RAY_ADDRESS names, or starts one on this machine."""
    import ray

    address = os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":  # a run sends nothing to anybody but its models
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        _check_address(address)
        ray.init(address, include_dashboard=False, logging_level=logging.WARNING)
    except (OSError, RuntimeError, ValueError) as error:
        raise UsageError(f"no Ray cluster at RAY_ADDRESS={address}: {first_line(error)}") from error
    try:
        yield
    finally:
        ray.shutdown()  # ends the workers of this run; they can be killed at any time


def _check_address(address: str) -> None:
    """Raises `OSError` if no server listens at an address; Ray would try for many minutes."""
    place = urlsplit(address if "://" in address else f"//{address}")
    if place.hostname and place.port:  # not "auto" or "local"
        socket.create_connection((place.hostname, place.port), _CONNECT_S).close()


def _work(config: CurateConfig, out: Path, lost: Lost, folder: Path) -> None:
    """Does the work that is left, as one of several processes.

    Args:
        config: the settings.
        out: the folder of the run.
        lost: treatment of requests whose answers were lost.
        folder: the folder that relative paths of the settings start from.
    """
    for place in (folder, out / SETTINGS):
        if not place.exists():
            raise UsageError(
                f"{socket.gethostname()} has no {place}: all machines of the cluster must share it"
            )
    os.chdir(folder)
    Curation(config, out, lost).run()
