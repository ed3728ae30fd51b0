"""Suffixes of image and video files: constants only, so that paths are checked before Pillow and torch are imported."""

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

# Values of --format, and the suffixes with which `sr_lightning.upscale` writes an image; others become .png.
IMAGE_FORMATS = ("png", "jpg", "webp", "tif", "bmp")
WRITABLE_IMAGE_SUFFIXES = (*(f".{name}" for name in IMAGE_FORMATS), ".jpeg", ".tiff")

VIDEO_SUFFIXES = (
    *(".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg"),
    *(".mts", ".ogv", ".ts", ".webm", ".wmv"),
)
WRITABLE_VIDEO_SUFFIXES = (".m4v", ".mkv", ".mov", ".mp4", ".webm")  # containers; others become .mkv

# Found in folders and by patterns. An animated .gif is then refused with the reason.
UPSCALE_SUFFIXES = (*IMAGE_SUFFIXES, ".gif", *VIDEO_SUFFIXES)
