"""Where the time of an update goes, operation by operation.

python -m om2p_train.bench.profile RECIPE TASK DEVICE SCALE OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity

from om2p_data.storage import write_whole
from om2p_train.bench.cases import Case, learner_of, made_up
from om2p_train.bench.limits import work_of
from om2p_train.config import Scale

_UPDATES, _WARM_UPS, _ROWS = 20, 5, 40


def main() -> None:
    name, task, device, scale, out = sys.argv[1:]
    case = Case(name, task, 1, (), device, graphs=False)  # a graph hides which operation launched a kernel
    dataset = made_up(task, 100_000)
    recipe = case.resolve(Scale(scale))
    _, learner = learner_of(case, recipe, dataset)
    for _ in range(_WARM_UPS):
        learner.update()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device != "cpu" else [])]
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(_UPDATES):
            learner.update()
    averages = profile.key_averages()
    order = "self_cpu_time_total" if device == "cpu" else "self_device_time_total"
    table = averages.table(sort_by=order, row_limit=_ROWS, max_name_column_width=60)
    work = work_of(case, recipe, dataset)
    head = f"{name} on {task}, {scale} scale, {_UPDATES} updates\n{work.flops / 1e9:.2f} GFLOP an update in products"
    text = f"{head}\n{table}\n"
    write_whole(Path(out), lambda temporary: temporary.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    main()
