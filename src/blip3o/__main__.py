"""`python -m blip3o` is the `blip3o` command (what torchrun starts)."""

from blip3o.cli import main

raise SystemExit(main())
