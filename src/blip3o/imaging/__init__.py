"""L1: images as files, PIL images and tensors, independent of models.

Opening: `load` is the entry point. It checks limits, lets `metadata` (with `png` and `tiff`)
remove metadata and read orientation and colors, decodes with Pillow or `tiff_deep`, and converts
to sRGB with `rgb`, `color` and `profiles`. `kinds` names files that are not readable images.

Use: `pixels` and `fit` convert images to tensors and back, `sheet` draws contact sheets, and
`settings` stores generation settings in PNG files.
"""
