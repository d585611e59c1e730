"""Write the first images of each CIFAR-10 split to a Parquet file, for experiments on a CPU.

    python benchmarks/cifar10_subset.py FOLDER OUT [--train 6000] [--test 2000]

FOLDER contains train*.parquet and test*.parquet in Hugging Face's layout (image: {bytes, path}, label).
"""

import argparse
from pathlib import Path

import pyarrow.parquet as pq


def main() -> None:
    """Write the first images of each split."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", type=int, default=6000)
    parser.add_argument("--test", type=int, default=2000)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        first = sorted(arguments.folder.glob(f"{split}*.parquet"))[0]
        rows = pq.read_table(first).slice(0, getattr(arguments, split))
        pq.write_table(rows, arguments.out / f"{split}.parquet")
        print(f"{arguments.out / f'{split}.parquet'}: {len(rows)} images")


if __name__ == "__main__":
    main()
