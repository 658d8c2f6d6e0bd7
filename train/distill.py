"""`gendistill distill` for launchers that need a file: `torchrun --nproc_per_node N train/distill.py ...`."""

import sys

from gendistill.cli import main

if __name__ == "__main__":
    sys.exit(main(["distill", *sys.argv[1:]]))
