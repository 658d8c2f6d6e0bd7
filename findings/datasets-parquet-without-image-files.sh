#!/usr/bin/env bash
# datasets 5.2.0: of a data set read from an image folder, save_to_disk stores the images, to_parquet stores where they were.
#
# Guess before running: both write self-contained files. to_parquet puts the bytes of each file into the cell, as a push
# to the Hub does, with the file's bare name as the path.
# Seen: the Arrow file of save_to_disk has bytes and a bare name. The cells of to_parquet have no bytes and the absolute
# path of the original file. Rows are read normally as long as that folder exists; without it (another machine, a moved
# folder) every row ends in FileNotFoundError, and a published file shows the names of the author's folders.
# What a user can do: map the column through cast_column("image", Image(decode=False)) and store {"bytes": ...} cells, as
# the parquet export here does, or use save_to_disk or push_to_hub.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet datasets==5.2.0 pillow==12.0.0 numpy==2.3.5 2>/dev/null
cd "$folder"
HF_HUB_OFFLINE=1 HF_HOME="$folder/home" HF_DATASETS_DISABLE_PROGRESS_BARS=1 "$folder/venv/bin/python" - <<'PYTHON'
import pathlib
import shutil

import datasets
import numpy as np
import pyarrow.parquet
from PIL import Image

for name in "ab":
    pathlib.Path("photos", name).mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(pathlib.Path("photos", name, "0.png"))
found = datasets.load_dataset("imagefolder", data_dir="photos", split="train")
found.to_parquet("photos.parquet")
found.save_to_disk("disk")
column = datasets.load_from_disk("disk").cast_column("image", datasets.Image(decode=False))
cells = {"save_to_disk": column[0]["image"], "to_parquet": pyarrow.parquet.read_table("photos.parquet")["image"][0].as_py()}
shutil.rmtree("photos")
print("datasets", datasets.__version__)
seen = {}
for name, load in {
    "save_to_disk": lambda: datasets.load_from_disk("disk")[0],
    "to_parquet": lambda: datasets.Dataset.from_parquet("photos.parquet")[0],
}.items():
    try:
        load()
        end = "readable"
    except FileNotFoundError:
        end = "FileNotFoundError"
    cell = cells[name]
    seen[name] = (cell["bytes"] is not None, pathlib.Path(cell["path"]).is_absolute(), end)
    print(f"{name:<13} bytes in the cell {seen[name][0]!s:<5} absolute path {seen[name][1]!s:<5} without the folder: {end}")
expected = {"save_to_disk": (True, False, "readable"), "to_parquet": (False, True, "FileNotFoundError")}
assert seen == expected, "the behaviour has changed"
PYTHON
