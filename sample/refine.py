"""`gendistill refine` for launchers that need a file: `torchrun --nproc_per_node N sample/refine.py ...`."""

import sys

from gendistill.cli import main

if __name__ == "__main__":
    sys.exit(main(["refine", *sys.argv[1:]]))
