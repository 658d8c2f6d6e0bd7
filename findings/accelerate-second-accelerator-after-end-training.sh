#!/usr/bin/env bash
# accelerate 1.15.0 with torch 2.13.0, two processes on a CPU (gloo): after Accelerator.end_training() a second
# Accelerator of the same script counts two processes but cannot reach the other one.
#
# Guess before running: end_training finishes the trackers. If it closes the process group too, then the next Accelerator
# either opens one, as the first did, or works alone with one process.
# Seen: the group is closed. The second Accelerator still says 2 processes and MULTI_CPU, because all Accelerators share
# one state that is not renewed, and it opens no group: gather, wait_for_everyone and prepare raise ValueError: Default
# process group has not been initialized.
# A script that trains two networks one after another (a generator, then a classifier) runs alone, and fails when it is
# launched with two processes, at the first step of the second training. That end_training closes the group is known
# upstream; that another Accelerator does not open it is what surprised us.
# What a user can do: call end_training once, at the very end; to finish the trackers earlier, finish those alone
# (`for tracker in accelerator.trackers: tracker.finish()`).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 accelerate==1.15.0 numpy==2.3.5 2>/dev/null
cat > "$folder/two.py" <<'PYTHON'
import accelerate
import torch
from accelerate import Accelerator


def outcome(call):
    try:
        return call()
    except Exception as error:
        return f"{type(error).__name__}: {str(error).split(',')[0]}"


first = Accelerator(cpu=True)
rank = torch.tensor([float(first.process_index)])
seen = {"first, gather": first.gather(rank).tolist()}
first.end_training()
seen["group open after end_training"] = torch.distributed.is_initialized()
second = Accelerator(cpu=True)
seen["second, processes"] = (second.num_processes, second.distributed_type.value)
seen["group open after the second Accelerator"] = torch.distributed.is_initialized()
seen["second, gather"] = outcome(lambda: second.gather(rank).tolist())
seen["second, wait_for_everyone"] = outcome(second.wait_for_everyone)
seen["second, prepare"] = outcome(lambda: second.prepare(torch.nn.Linear(2, 2)))
if first.process_index == 0:
    print("accelerate", accelerate.__version__, "torch", torch.__version__)
    for name, value in seen.items():
        print(f"{name}: {value}")
    closed = "ValueError: Default process group has not been initialized"
    assert seen["first, gather"] == [0.0, 1.0], seen
    assert seen["second, processes"] == (2, "MULTI_CPU"), seen
    assert not seen["group open after end_training"], seen
    assert not seen["group open after the second Accelerator"], seen
    assert {seen[f"second, {what}"] for what in ("gather", "wait_for_everyone", "prepare")} == {closed}, seen
PYTHON
OMP_NUM_THREADS=1 "$folder/venv/bin/torchrun" --nproc_per_node 2 --rdzv_backend c10d --rdzv_endpoint localhost:0 "$folder/two.py"
