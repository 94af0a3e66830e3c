"""The classes of detectors that were trained on COCO."""

from blip3o.core.files import read_lines
from blip3o.eval.prompt_files import BUNDLED


def coco_classes() -> tuple[str, ...]:
    """Returns the 80 classes in the order of COCO, under the names that GenEval gives them."""
    return tuple(read_lines(BUNDLED / "geneval" / "object_names.txt", "names of classes"))
