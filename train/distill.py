"""Launch script for distillers: `python train/distill.py --method kmeans --ipc 10 --output_dir DIR`."""

import sys

from gendistill.cli import main

if __name__ == "__main__":
    sys.exit(main(["distill", *sys.argv[1:]]))
