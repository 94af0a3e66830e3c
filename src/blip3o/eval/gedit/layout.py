"""The folders of GEdit-Bench's own program: SAVE/MODEL/fullset/TASK/LANG/KEY.png."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from blip3o.core.errors import UsageError
from blip3o.eval.benchmark import Found, Item, Layout, Sample
from blip3o.eval.layouts import write_png


class GEditLayout(Layout):
    """The folder SAVE/MODEL of the official program: `fullset/TASK/LANG/KEY.png`; a `Layout`.

    The source image lies beside each result as `KEY_SRCIMG.png`.
    """

    def read(self, folder: Path, items: Sequence[Item]) -> Iterator[Found]:
        """Yields the samples; see `Layout`. `folder` may also be SAVE with one model in it."""
        base = _fullset(folder)
        wrong = sorted(base.glob("*/zh"))
        if wrong:
            raise UsageError(f"{wrong[0]} is not read by the benchmark's own program: name it cn")
        found = [(item, file) for item in items if (file := _result(base, item)).is_file()]
        if not found:
            raise UsageError(f"{base} holds no sample: they are named TASK/LANG/KEY.png")
        for item, file in found:
            yield Found(item=item.id, number=0, file=file)

    def write(self, folder: Path, samples: Sequence[Sample]) -> None:
        """Writes result and source image of an item; see `Layout`."""
        for sample in samples:
            if sample.image is None or sample.number:
                continue
            file = _result(folder / "fullset", sample.item)
            write_png(file.with_name(f"{file.stem}_SRCIMG.png"), sample.sources[0])
            write_png(file, sample.image)


def _result(fullset: Path, item: Item) -> Path:
    return fullset / item.category / item.data["language"] / f"{item.data['key']}.png"


def _fullset(folder: Path) -> Path:
    if not folder.is_dir():
        raise UsageError(f"no such folder: {folder}")
    inside = [folder, *sorted(one for one in folder.iterdir() if one.is_dir())]
    found = [one / "fullset" for one in inside if (one / "fullset").is_dir()]
    if len(found) != 1:
        state = "no folder fullset" if not found else f"{len(found)} models"
        raise UsageError(f"{folder} holds {state}: give SAVE/MODEL, with fullset/TASK/LANG/KEY.png")
    return found[0]
