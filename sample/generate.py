"""Launch script for sampling: `python sample/generate.py --generator DIR --ipc 10 --output_dir DIR`."""

import sys

from gendistill.cli import main

if __name__ == "__main__":
    sys.exit(main(["sample", *sys.argv[1:]]))
