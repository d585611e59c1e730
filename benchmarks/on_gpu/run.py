"""Work on the next unfinished item of items.py for a few minutes. This needs a GPU.

python benchmarks/on_gpu/run.py --data-dir DIR
"""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

from items import ITEMS, ROOT
from machine import describe
from work_queue import WorkQueue


def machine() -> dict[str, Any]:
    """Return the date, GPU, software versions and hardware, which are recorded for each call."""
    import torch

    return {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "gpu": torch.cuda.get_device_name(0),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "machine": describe("torch", "torchvision", "numpy", "optuna", "pyarrow"),
    }


def main() -> None:
    """List the items, or work on the next one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="only list the items and their states")
    parser.add_argument("--minutes", type=float, default=9, help="time limit of this call")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder for results/ and runs/")
    parser.add_argument("--data-dir", default=os.environ.get("TICKET_SEARCH_DATA_DIR"), help="folder of the data sets")
    arguments = parser.parse_args()
    work = WorkQueue(ITEMS, arguments.out.resolve())
    if arguments.list:
        for item in ITEMS:
            print(f"{work.state(item):8}{item.name:18}{item.question}")
        return
    item = work.next()
    if item is None:
        print("all items are done")
        return
    import torch

    if not torch.cuda.is_available():
        sys.exit("this machine has no CUDA device; run it on one that has")
    print(f"{item.name}: {item.question}", flush=True)
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    if arguments.data_dir:
        env["TICKET_SEARCH_DATA_DIR"] = str(Path(arguments.data_dir).resolve())
    state = work.work(item, 60 * arguments.minutes, machine(), cwd=ROOT, env=env)
    print(f"{item.name}: {state}; see {arguments.out / 'results' / item.name}")
    sys.exit(state == "failed")


if __name__ == "__main__":
    main()
