#!/usr/bin/env bash
# datasets 5.2.0: a 16-bit array of one channel keeps all its bits in an Image column; one of three channels keeps the LOW
# byte of every value, so that the picture becomes noise.
#
# Guess before running: Pillow has no 16-bit colour mode, so the array is refused like a float one, or scaled to 8 bits.
# Seen: float arrays of three channels are refused. uint16 ones give a warning ("Downcasting array dtype uint16 to uint8 to
# be compatible with 'Pillow'") and are stored modulo 256: a smooth ramp from 0 to 65535 has a correlation of about 0 with
# what is read back. uint16 of one channel is stored exactly (mode I;16).
# What a user can do: divide 16-bit colour arrays by 257 before they make a data set of them.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet datasets==5.2.0 pillow==12.0.0 numpy==2.3.5 2>/dev/null
cd "$folder"
HF_HUB_OFFLINE=1 HF_HOME="$folder/home" "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import datasets
import numpy as np

ramp = np.linspace(0, 65535, 64 * 64 * 3).reshape(64, 64, 3).astype(np.uint16)


def stored(array):
    features = datasets.Features({"image": datasets.Image()})
    return np.asarray(datasets.Dataset.from_dict({"image": [array]}, features=features)[0]["image"])


grey, colour = stored(ramp[..., 0]), stored(ramp)
correlation = np.corrcoef(colour.ravel(), ramp.ravel())[0, 1]
try:
    stored(ramp.astype(np.float32) / 65535)
    floats = "accepted"
except TypeError:
    floats = "TypeError"
print("datasets", datasets.__version__)
print("one channel, exact:", bool((grey == ramp[..., 0]).all()))
print("three channels, low byte of each value:", bool((colour == ramp % 256).all()), f"correlation {correlation:.3f}")
print("three channels of floats:", floats)
assert (grey == ramp[..., 0]).all() and (colour == ramp % 256).all() and abs(correlation) < 0.1, "the behaviour has changed"
assert floats == "TypeError", "the behaviour has changed"
PYTHON
