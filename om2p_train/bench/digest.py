"""A run folder as one small file: what was run, and the mean return of every seed at every evaluation.

python -m om2p_train.bench.digest RUN_FOLDER OUT.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from om2p_data.storage import write_whole
from om2p_train import results, run_folder


def main() -> None:
    folder, out = map(Path, sys.argv[1:])
    run = results.read(folder)
    content = run_folder.read_facts(folder) | {"updates": run.updates.tolist(), "returns": run.returns.tolist()}
    write_whole(out, lambda temporary: temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8"))


if __name__ == "__main__":
    main()
