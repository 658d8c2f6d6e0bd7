"""What the same bytes buy: k whole images a class, or k stored ones of f x f smaller images, whole ones or patches.

    python -m experiments.packing --data ../shared/data/cifar10 --generator RUN/generator --output out.jsonl

Every synthesis seed trains its own teacher and draws its own pools, and all its sets are judged with the same training
runs. A row has the bytes of its PNG files: k stored images take about the same, but packed ones compress less. Rows
"then dm" are carried on by distribution matching, as in experiments.guides. Finished seeds are read from the
output file. Test images are read once a training, after its last step; the settings are fixed before any of it is seen.
"""

from __future__ import annotations
