"""`gendistill finetune` for launchers that need a file: `torchrun --nproc_per_node N train/finetune.py ...`."""

import sys

from gendistill.cli import main

if __name__ == "__main__":
    sys.exit(main(["finetune", *sys.argv[1:]]))
