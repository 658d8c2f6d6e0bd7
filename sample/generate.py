"""`gendistill sample` for launchers that need a file: `torchrun --nproc_per_node N sample/generate.py ...`."""

import sys

from gendistill.cli import main

if __name__ == "__main__":
    sys.exit(main(["sample", *sys.argv[1:]]))
