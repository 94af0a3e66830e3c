"""Starts the `blip3o` command; the console script and `python -m blip3o` run this module."""

import gc
import sys


def run() -> int:
    """Runs the command line and returns its exit status, also if Ctrl-C comes during imports."""
    try:
        from blip3o.cli import main

        return main()
    except KeyboardInterrupt:  # `main` handles an interrupt only while a command runs
        sys.stderr.write("blip3o: interrupted\n")
        return 130
    finally:
        gc.freeze()  # the exit would search all objects of torch for cycles, for 0.4 s


if __name__ == "__main__":
    sys.exit(run())
