"""A run folder as one small file of records, which `om2p-train report` reads.

python -m om2p_train.bench.digest RUN_FOLDER OUT.json
"""

from __future__ import annotations

import sys
from pathlib import Path

from om2p_train import recorded_run, records


def main() -> None:
    folder, out = map(Path, sys.argv[1:])
    records.write([recorded_run.read(folder)], out)


if __name__ == "__main__":
    main()
