"""python -m sr_lightning.upscale."""

import sys

from sr_lightning.upscale.command import main

if __name__ == "__main__":
    sys.exit(main())
