"""Which files are images, texts or junk, told by their names."""

IMAGE_SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".gif", ".bmp", ".dib"),
    *(".tif", ".tiff", ".avif", ".ppm", ".pgm", ".pbm", ".pnm"),
)
"""Endings of images, in any case."""

OTHER_IMAGE_SUFFIXES = (
    *(".heic", ".heif", ".hif", ".jxl", ".jp2", ".j2k", ".jpx", ".jpf", ".jxr", ".svg", ".psd"),
    *(".exr", ".hdr", ".tga", ".ico", ".icns", ".pfm", ".dng", ".cr2", ".cr3", ".nef", ".arw"),
    *(".orf", ".rw2", ".raf", ".raw", ".eps", ".pdf", ".ai", ".xcf", ".dds", ".pcx", ".fits"),
)
"""Endings of images that are not read; messages name them."""

CAPTION_SUFFIXES = (".txt", ".caption")
"""Endings of a text that is an image's caption, in any case."""

_JUNK_FOLDERS = (
    *("__macosx", "network trash folder", "temporary items", "thevolumesettingsfolder"),
    *("$recycle.bin", "recycler", "recycled", "system volume information", "found.000"),
    *("@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "~snapshot"),
    *("lost+found", "__pycache__"),
)
"""These are left by macOS, Windows, network disks, Linux and Python, in this order."""
_JUNK_FILES = ("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r")


def is_junk(name: str) -> bool:
    """Returns whether a file or folder of this name is hidden or left by a system.

    Args:
        name: one name, not a path: ".cache", "__MACOSX", "._a.png", "Thumbs.db".
    """
    low = name.lower()
    return name.startswith(".") or low in _JUNK_FOLDERS or low in _JUNK_FILES
