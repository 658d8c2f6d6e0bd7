"""Launch script for refinement: `python sample/refine.py --surrogate DIR --teacher DIR --output_dir DIR`."""

import sys

from gendistill.cli import main

if __name__ == "__main__":
    sys.exit(main(["refine", *sys.argv[1:]]))
