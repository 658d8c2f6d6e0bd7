#!/usr/bin/env bash
# torch.distributed.checkpoint.state_dict, torch 2.13.0 (the same in 2.14.1): an optimiser's state that is both flattened
# (one tensor a key, as safetensors wants it) and full (gathered, as a checkpoint for any number of processes wants it)
# can be read but not put back.
#
# Guess before running: set_optimizer_state_dict takes what get_optimizer_state_dict returned with the same options, in
# all four combinations; the two options are independent and documented as such.
# Seen: three combinations restore the optimiser. With flatten_optimizer_state_dict=True and full_state_dict=True together
# the call raises KeyError: 'param_groups.0.params.0', a key that is not in what was returned: parameter groups are
# flattened by the parameters' names there. One process, no process group, one Linear layer and AdamW.
# What a user can do: get it full and not flattened, and flatten and unflatten the nested dictionary themselves.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.3.5 2>/dev/null
"$folder/venv/bin/python" - <<'PYTHON'
import itertools

import torch
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)


def trained():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return model, optimizer


print("torch", torch.__version__)
seen = {}
for flat, full in itertools.product((False, True), repeat=2):
    options = StateDictOptions(flatten_optimizer_state_dict=flat, full_state_dict=full)
    state = get_optimizer_state_dict(*trained(), options=options)
    try:
        set_optimizer_state_dict(*trained(), state, options=options)
        seen[flat, full] = "restored"
    except KeyError as error:
        seen[flat, full] = f"KeyError {error}, among the keys: {error.args[0] in state}"
    print(f"flattened {flat!s:<5} full {full!s:<5} {seen[flat, full]}")
expected = dict.fromkeys(itertools.product((False, True), repeat=2), "restored")
expected[True, True] = "KeyError 'param_groups.0.params.0', among the keys: False"
assert seen == expected, "the behaviour has changed"
PYTHON
