"""Run the command: python -m sr_lightning.export."""

import sys

from sr_lightning.export.command import main

if __name__ == "__main__":
    sys.exit(main())
