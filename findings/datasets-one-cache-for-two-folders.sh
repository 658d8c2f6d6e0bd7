#!/usr/bin/env bash
# datasets 5.2.0: two local folders of the same name, whose README.md names the files, share one entry of the cache.
#
# Guess before running: load_dataset("a/photos") and load_dataset("b/photos") give the images of a and of b. Without a
# README.md, or with data_files, they do: the paths and times of the files are part of the key.
# Seen: with `configs` in README.md the key is the folder's last name and the text of `configs`, whose patterns are
# relative. The second call gives the images of a, without a message. A moved folder gives paths that are gone.
# What a user can do: make `configs` differ (a `description` with a checksum, as the cards here have), or give
# download_mode="force_redownload".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet datasets==5.2.0 pillow==12.0.0 numpy==2.3.5 2>/dev/null
cd "$folder"
HF_HUB_OFFLINE=1 HF_HOME="$folder/home" HF_DATASETS_DISABLE_PROGRESS_BARS=1 "$folder/venv/bin/python" - <<'PYTHON'
import pathlib

import datasets
import numpy as np
from PIL import Image

CARD = "---\nconfigs:\n- config_name: all\n{}  data_files:\n  - split: train\n    path: train/**\n---\n"


def level(place, value, description=""):
    photos = pathlib.Path(place, "photos")
    (photos / "train" / "cat").mkdir(parents=True)
    (photos / "train" / "dog").mkdir()
    for name in ("cat", "dog"):
        Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(photos / "train" / name / "0.png")
    (photos / "README.md").write_text(CARD.format(description))
    return int(np.asarray(datasets.load_dataset(str(photos), split="train")[0]["image"]).max())


seen = [level("a", 10), level("b", 200), level("c", 90, "  description: another\n")]
print("datasets", datasets.__version__)
print("written: 10, 200 and, with a description, 90; read:", seen)
assert seen == [10, 10, 90], "this has changed"
PYTHON
