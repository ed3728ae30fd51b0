"""python -m sr_lightning.upscale: the command sr-upscale."""

from sr_lightning.upscale.command import entry_point

if __name__ == "__main__":
    entry_point()
