#!/usr/bin/env bash
# torch.utils.data.DataLoader, torch 2.13.0 (the same in 2.14.1): a loop over a loader with shuffle=False and no workers
# draws from the global generator, so that a training with one more validation ends with other weights.
#
# Guess before running: in the main process and in order, nothing is drawn. The documentation speaks of a seed for worker
# processes, under "Randomness in multi-process data loading". So a training that is seeded once ends with the same
# weights, whether a validation in eval mode follows every epoch, the last one or none.
# Seen: every `iter(loader)` draws a number from the global generator, which nothing uses without workers. A validation in
# order, in inference_mode, therefore changes the order of the training batches in all later epochs: the weights end 17 %
# away. Two runs of one seed that validate after other epochs are other runs, and so is one that is resumed and validates
# first; no message says so. A list of the same batches leaves the generator alone.
# What a user can do: give the validation's loader a generator of its own (generator=torch.Generator()), from which it
# then draws, or give the training's loader one. Asked upstream in 2018: it is meant to be so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.3.5 2>/dev/null
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from torch.utils.data import DataLoader, TensorDataset

rng = torch.Generator().manual_seed(0)
images = torch.randn(600, 20, generator=rng)
data = TensorDataset(images, (images[:, :5].sum(1) + torch.randn(600, generator=rng) > 0).long())
train, held_out = torch.utils.data.Subset(data, range(400)), torch.utils.data.Subset(data, range(400, 600))


def in_order(**options):
    return DataLoader(held_out, batch_size=50, shuffle=False, num_workers=0, **options)


def trained(epochs, validation=in_order, seed=0):
    """Weights after 4 epochs, where a validation follows some of these epochs."""
    torch.manual_seed(seed)
    model = torch.nn.Linear(20, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for epoch in range(4):
        for x, y in DataLoader(train, batch_size=20, shuffle=True):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        if epoch in epochs:
            with torch.inference_mode():
                sum((model(x).argmax(1) == y).sum() for x, y in validation())
    return model.weight.detach()


print("torch", torch.__version__)
BATCHES = list(in_order())
usual = trained(())
distance = {
    "again, no validation": trained(()),
    "validation after every epoch": trained((0, 1, 2, 3)),
    "validation after the first epoch": trained((0,)),
    "validation after the last epoch": trained((3,)),
    "a list of batches, every epoch": trained((0, 1, 2, 3), lambda: BATCHES),
    "a generator of its own, every epoch": trained((0, 1, 2, 3), lambda: in_order(generator=torch.Generator())),
    "no validation, another seed": trained((), seed=1),
}
distance = {name: float((weights - usual).norm() / usual.norm()) for name, weights in distance.items()}
for name, value in distance.items():
    print(f"{name:<38} relative distance of the weights {value:.4f}")
changed = [name for name, value in distance.items() if value > 0]
expected = ["validation after every epoch", "validation after the first epoch", "no validation, another seed"]
assert changed == expected, "the behaviour has changed"
PYTHON
