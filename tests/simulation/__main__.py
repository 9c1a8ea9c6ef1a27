"""The command behind `scripts/simulate`."""

import argparse
import sys

from tests.simulation.simulation import simulate


def main() -> int:
    """Run the seeds asked for, print a line each, and say whether all of them kept the invariants."""
    parser = argparse.ArgumentParser(
        prog="scripts/simulate", description="Replay simulations of the whole system by their seed."
    )
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--sessions", type=int, default=3, help="mounts of the workspace")
    parser.add_argument("--steps", type=int, default=60, help="operations of each")
    parser.add_argument("--runs", type=int, default=1, help="how many seeds, one after the other")
    asked = parser.parse_args()
    failed = 0
    for seed in range(asked.seed, asked.seed + asked.runs):
        # First, for the case that the program itself breaks.
        print(f"seed {seed}: ", end="", flush=True)
        outcome = simulate(seed, sessions=asked.sessions, steps=asked.steps)
        failed += bool(outcome.wrong)
        print(
            f"{'FAILED' if outcome.wrong else 'ok'} checksum {outcome.checksum[:16]} position {outcome.position} "
            f"operations {outcome.operations} acknowledged {outcome.acknowledged} "
            f"added {outcome.added} crashes {outcome.crashes} fences {outcome.fences} "
            f"freezes {outcome.freezes} copies {outcome.copies}",
            flush=True,
        )
        for line in outcome.wrong:
            print(f"  {line}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
