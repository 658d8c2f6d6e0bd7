#!/usr/bin/env bash
# safetensors 0.8.0: files of the same tensors and the same metadata differ in their bytes from process to process as soon
# as the metadata has two keys or more, so a hash of the file is no identity of what it holds.
#
# Guess before running: tensors are written in a fixed order (by type and name), so the header is fixed as well; at most
# the order in which the metadata were given could matter.
# Seen: with one key all files are the same; with six keys, given in the same order, eight processes write several
# different files. The tensors' part is the same in all of them; the metadata stand in a random order in the header.
# What a user can do: hash the tensors instead of the file, or keep one key that holds sorted JSON.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet safetensors==0.8.0 numpy==2.3.5 2>/dev/null
cd "$folder"
cat > write.py <<'PYTHON'
import sys

import numpy as np
from safetensors.numpy import save_file

keys = int(sys.argv[1])
save_file({"a": np.arange(4.0), "b": np.zeros(3)}, sys.argv[2], metadata={f"key{i}": "value" for i in range(keys)})
PYTHON
for keys in 1 6; do
  for run in 1 2 3 4 5 6 7 8; do venv/bin/python write.py $keys "$keys-$run.safetensors"; done
  eval "files_$keys=$(sha256sum $keys-*.safetensors | cut -d' ' -f1 | sort -u | wc -l)"
  eval "tails_$keys=$(for file in $keys-*.safetensors; do tail -c 56 "$file" | sha256sum; done | sort -u | wc -l)"
done
echo "safetensors $(venv/bin/python -c 'from importlib.metadata import version; print(version("safetensors"))')"
echo "8 processes, 1 key: $files_1 different file(s), $tails_1 different part(s) of tensors"
echo "8 processes, 6 keys: $files_6 different file(s), $tails_6 different part(s) of tensors"
[ "$files_1" = 1 ] && [ "$files_6" -gt 1 ] && [ "$tails_6" = 1 ] || { echo "the behaviour has changed"; exit 1; }
