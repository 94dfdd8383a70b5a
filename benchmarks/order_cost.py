"""Cost of the order of training windows, and the number of shards that it reads from.

    python benchmarks/order_cost.py

A set of 1,000 shards with 20 sequences of 100 frames each (1.9 million windows of 7 frames) exists as an index only:
the order does not depend on the data. Measured for each order: CPU time per sample, planned 512 at a time as the loader
does, from the start and from position 10^12; memory of the order itself; and the number of different shards among 1,000
and 10,000 samples in a row. Writes benchmarks/results/order_cost.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

from machine import describe_machine

from vsr_dist.data.order import BlockOrder, Order, Run, SequentialOrder, ShuffleOrder, WindowTable

RESULT = Path(__file__).parent / "results" / "order_cost.json"
NUM_SHARDS, SEQUENCES_PER_SHARD, NUM_FRAMES, WINDOW_FRAMES = 1000, 20, 100, 7
TOGETHER, ROUNDS, FAR = 512, 20, 10**12
RUNS = [
    Run(shard * SEQUENCES_PER_SHARD + place, 0, NUM_FRAMES, shard)
    for shard in range(NUM_SHARDS)
    for place in range(SEQUENCES_PER_SHARD)
]
ORDERS: dict[str, Callable[[WindowTable], Order]] = {
    "shuffle": lambda windows: ShuffleOrder(windows, 0),
    "block of 8 shards": lambda windows: BlockOrder(windows, 0, 8),
    "ordered, 16 lanes": lambda windows: SequentialOrder(windows, 0, 16),
}


def cost_us(order: Order, first: int) -> float:
    order.samples(range(first, first + TOGETHER))  # what an epoch needs once
    found = []
    for number in range(1, ROUNDS + 1):
        positions = range(first + number * TOGETHER, first + (number + 1) * TOGETHER)
        begin_s = time.process_time()
        order.samples(positions)
        found.append((time.process_time() - begin_s) / TOGETHER * 1e6)
    return round(statistics.median(found), 2)


def shards_among(order: Order, count: int) -> int:
    return len({sample.window.sequence // SEQUENCES_PER_SHARD for sample in order.samples(range(count))})


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    windows = WindowTable(RUNS, WINDOW_FRAMES)
    found = {}
    for name, make in ORDERS.items():
        tracemalloc.start()
        order = make(windows)
        order.samples(range(TOGETHER))
        order_bytes = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        found[name] = {
            "cpu_us_per_sample": cost_us(order, 0),
            "cpu_us_per_sample_at_10^12": cost_us(order, FAR),
            "memory_mb": round(order_bytes / 1e6, 2),
            "shards_among_1000": shards_among(order, 1000),
            "shards_among_10000": shards_among(order, 10_000),
        }
        print(name, found[name])
    result = {
        "command": "python benchmarks/order_cost.py",
        "what": f"{len(windows)} windows in {NUM_SHARDS} shards",
        "orders": found,
        "machine": describe_machine(),
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
