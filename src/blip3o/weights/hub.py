"""Models on the Hugging Face hub: downloaded only where a caller asked for an id of it."""

import re
from pathlib import Path

from blip3o.core.errors import UsageError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WANTED = ["*.json", "*.safetensors", "*.txt", "*.md"]  # no pickles and no programs
_UNWANTED = ["trainer_state.json", "*optimizer*"]


def to_local(name: str | Path, revision: str | None = None) -> str | Path:
    """Returns a model's name or folder, downloaded first if the name is a hub id.

    Args:
        name: a bundled name, a folder, or `organization/name` where no such folder exists.
        revision: branch, tag or commit of the hub's repository.

    Raises:
        UsageError: if it can neither be found nor downloaded, or a revision is asked of something
            that is not on the hub.
    """
    if isinstance(name, str) and _HUB_ID.fullmatch(name) and not Path(name).exists():
        return _download(name, revision)
    if revision is not None:
        raise UsageError(f"a revision belongs to a hub id such as org/name, not to {str(name)!r}")
    return name


def _download(name: str, revision: str | None) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise UsageError(
            f"there is no folder {name}, and to download it from the hub huggingface_hub is "
            "needed: pip install huggingface_hub"
        ) from error
    try:
        return Path(
            snapshot_download(
                name, revision=revision, allow_patterns=_WANTED, ignore_patterns=_UNWANTED
            )
        )
    except (OSError, ValueError, RuntimeError) as error:  # all that the library and sockets raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"there is no folder {name}, and the hub did not give it: {reason}"
        ) from error
