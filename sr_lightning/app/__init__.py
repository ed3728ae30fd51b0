"""A page that enlarges photos in the browser."""

BICUBIC = "bicubic"  # name on the page, beside those of the networks
