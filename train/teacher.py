"""`gendistill teacher` for launchers that need a file: `torchrun --nproc_per_node N train/teacher.py ...`."""

import sys

from gendistill.cli import main

if __name__ == "__main__":
    sys.exit(main(["teacher", *sys.argv[1:]]))
