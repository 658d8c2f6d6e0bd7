"""Launch script for the teacher stage: `python train/teacher.py --output_dir DIR`."""

import sys

from gendistill.cli import main

if __name__ == "__main__":
    sys.exit(main(["teacher", *sys.argv[1:]]))
