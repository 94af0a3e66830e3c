"""Downloads models from the Hugging Face hub, only if the caller names a hub id.

Only files that models need (`WANTED`) are downloaded, into the hub's own cache. Complete files are
not downloaded again, and interrupted downloads are resumed. `HF_HUB_OFFLINE=1` uses only cached
files; a missing file is reported with the command that fetches it.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from blip3o.core.errors import UsageError
from blip3o.core.log import say
from blip3o.weights.names import full_name, is_hub_id

WANTED = (
    "config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "diffusion_pytorch_model*.safetensors*",
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
"""Files of a repository to download: no pickles, no code, no training states."""

PICKLES = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
"""Files to download in addition if the caller allows pickles."""


def to_local(
    name: str | Path, revision: str | None = None, *, allow_pickle: bool = False
) -> str | Path:
    """Returns a model's name or folder; a hub id is downloaded first.

    Args:
        name: a bundled name, a folder, a released model's short name, or a hub id (`org/name`) if
            no such folder exists.
        revision: branch, tag or commit of the hub's repository.
        allow_pickle: whether to download weights in pickles as well.

    Raises:
        UsageError: if the model can neither be found nor downloaded, or a revision is given for a
            model that is not on the hub.
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
            f"there is no folder {name}, and a download from the hub needs huggingface_hub: "
            "pip install huggingface_hub"
        ) from error

    class Bar(tqdm):
        """A progress bar that stays silent if stderr is not a terminal."""

        def __init__(self, *arguments: object, **options: object) -> None:
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
            f"{name} on the hub has no config.json, so it is not a model folder; "
            "docs/weights.md lists the supported repositories"
        )
    if not shown:
        say(f"{name}: {folder}")
    return folder


def _reason(name: str, revision: str | None, error: BaseException) -> str:
    """Returns the reason of a failed download and the remedy, for a one-line message."""
    from huggingface_hub import errors

    causes = tuple(_causes(error))

    def is_any(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    if is_any(errors.GatedRepoError):
        return (
            f"the hub requires your agreement first: https://huggingface.co/{name}, then "
            "`hf auth login`"
        )
    if is_any(errors.RepositoryNotFoundError):
        return "the hub has no model of that name, or it is private: `hf auth login`"
    at = f" --revision {revision}" if revision else ""
    if is_any(errors.RevisionNotFoundError):
        return f"its repository on the hub has no revision {revision!r}"
    if is_any(errors.IncompleteSnapshotError):
        return f"only a part of it is in the hub's cache; download it: hf download {name}{at}"
    if is_any(errors.OfflineModeIsEnabled):
        return (
            "it is not in the hub's cache, and HF_HUB_OFFLINE forbids the download: unset "
            f"it, or copy the cache of a machine that ran: hf download {name}{at}"
        )
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"the download failed: {reason}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
