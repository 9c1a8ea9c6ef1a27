"""The command behind `scripts/bench`."""

import argparse
import signal
import sys
import tempfile
from pathlib import Path

from scripts.benchmarks.ground import open_ground
from scripts.benchmarks.handoff import Handoff
from scripts.benchmarks.machine import this_machine
from scripts.benchmarks.names import Names
from scripts.benchmarks.phase import Phase
from scripts.benchmarks.report import as_json, table
from scripts.benchmarks.series import WARM_UP
from scripts.benchmarks.unchanged import Unchanged
from scripts.benchmarks.uncontended import Uncontended
from scripts.benchmarks.visibility import Visibility
from scripts.benchmarks.waiters import Waiters

PHASES: tuple[Phase, ...] = (Uncontended(), Handoff(), Waiters(), Visibility(), Names(), Unchanged())
SMOKE_ROUNDS = 2


def main() -> int:
    """Run the phases asked for and print a table; figures that miss their aims are shown, and are no failure."""
    asked = _arguments()
    # Whoever ends the run must not leave mounts behind.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    machine = this_machine(asked.directory)
    print(f"{machine}\n", flush=True)
    everything = []
    with open_ground(asked.directory) as ground:
        for phase in PHASES:
            if not asked.phase or phase.name in asked.phase:
                with ground.stage(phase.name) as stage:
                    findings = phase.run(stage, WARM_UP + _rounds(asked, phase))
                print(table(phase, findings), flush=True)
                everything.append(findings)
    if asked.json:
        asked.json.write_text(as_json(machine, everything))
    return 0


def _rounds(asked: argparse.Namespace, phase: Phase) -> int:
    if asked.rounds:
        return int(asked.rounds)
    return SMOKE_ROUNDS if asked.smoke else phase.rounds


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measure agentfs beside a local directory.")
    names = [phase.name for phase in PHASES]
    parser.add_argument("--phase", action="append", choices=names, help="only this; repeat it for more")
    parser.add_argument("--rounds", type=_positive, help="how often each phase does what it measures in each place")
    parser.add_argument("--smoke", action="store_true", help="only see that every phase works, in under a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument(
        "--directory", type=Path, default=Path(tempfile.gettempdir()), help="where to run; default: %(default)s"
    )
    return parser.parse_args()


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
