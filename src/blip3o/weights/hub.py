"""Models on the Hugging Face hub: downloaded only where a caller asked for an id of it.

Only the files that models are read from are fetched (`WANTED`), into the hub's own cache: a file
that is there whole is not fetched again, a connection that breaks is taken up where it broke, and
`HF_HUB_OFFLINE=1` takes what is in the cache and asks nobody.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from blip3o.core.errors import UsageError
from blip3o.core.log import say
from blip3o.weights.names import full_name, is_hub_id

WANTED = (
    "config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "image_encoder/model*.safetensors*",
    "image_decoder/model*.safetensors*",
    "diffusion-decoder/unet/config.json",
    "diffusion-decoder/unet/*.safetensors*",
    "diffusion-decoder/vae/config.json",
    "diffusion-decoder/vae/*.safetensors*",
    "diffusion-decoder/scheduler/scheduler_config.json",
    "diffusion-decoder/empty_features.safetensors",
    "adapter_config.json",
    "tokenizer.json",
    "README.md",
    "LICENSE*",
)
"""What of a repository is downloaded: no pickles, no programs, no states of a training."""

PICKLES = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
"""What is downloaded beside it where a caller allows pickles."""


def to_local(
    name: str | Path, revision: str | None = None, *, allow_pickle: bool = False
) -> str | Path:
    """Returns a model's name or folder, downloaded first if the name is a hub id.

    Args:
        name: a bundled name, a folder, a released model's short name, or `organization/name` where
            no such folder exists.
        revision: branch, tag or commit of the hub's repository.
        allow_pickle: download weights in pickles too.

    Raises:
        UsageError: if it can neither be found nor downloaded, or a revision is asked of something
            that is not on the hub.
    """
    name = full_name(name)
    if isinstance(name, str) and is_hub_id(name):
        return _download(name, revision, [*WANTED, *(PICKLES if allow_pickle else ())])
    if revision is not None:
        raise UsageError(f"a revision belongs to a hub id such as org/name, not to {str(name)!r}")
    return name


def _download(name: str, revision: str | None, wanted: list[str]) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.utils import tqdm
    except ImportError as error:
        raise UsageError(
            f"there is no folder {name}, and to download it from the hub huggingface_hub is "
            "needed: pip install huggingface_hub"
        ) from error

    class Bar(tqdm):
        """A progress bar that keeps quiet where stderr is no terminal."""

        def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401
            super().__init__(
                *arguments, **{**options, "disable": options.get("disable") or not shown}
            )

    shown = sys.stderr.isatty()
    try:
        folder = Path(
            snapshot_download(name, revision=revision, allow_patterns=wanted, tqdm_class=Bar)
        )
    except Exception as error:
        raise UsageError(f"there is no folder {name}, and {_reason(name, revision, error)}") from (
            error
        )
    if not (folder / "config.json").is_file():
        raise UsageError(
            f"{name} on the hub has no config.json, so it is no model folder; docs/weights.md "
            "lists the repositories that can be read"
        )
    if not shown:
        say(f"{name}: {folder}")
    return folder


def _reason(name: str, revision: str | None, error: BaseException) -> str:
    """Returns what went wrong and what to do, for one line."""
    from huggingface_hub import errors

    causes = tuple(_causes(error))

    def is_any(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    if is_any(errors.GatedRepoError):
        return (
            f"the hub asks you to agree first: https://huggingface.co/{name}, then `hf auth login`"
        )
    if is_any(errors.RepositoryNotFoundError):
        return "the hub has no model of that name, or it is private: `hf auth login`"
    at = f" --revision {revision}" if revision else ""
    if is_any(errors.RevisionNotFoundError):
        return f"the one on the hub has no revision {revision!r}"
    if is_any(errors.IncompleteSnapshotError):
        return f"only a part of it is in the hub's cache; download it: hf download {name}{at}"
    if is_any(errors.OfflineModeIsEnabled):
        return (
            "it is not in the hub's cache, and HF_HUB_OFFLINE forbids to download it: unset that, "
            f"or copy the cache of a machine that ran: hf download {name}{at}"
        )
    said = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"the hub did not give it: {said}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
