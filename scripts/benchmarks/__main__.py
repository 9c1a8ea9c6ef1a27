"""The command behind `scripts/bench`."""

import argparse
import signal
import sys
import tempfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from scripts.benchmarks.big_file import BigFile
from scripts.benchmarks.chart import drawn
from scripts.benchmarks.edits import Edits
from scripts.benchmarks.engines import Engines
from scripts.benchmarks.failover import Failover
from scripts.benchmarks.first_byte import FirstByte
from scripts.benchmarks.ground import open_ground
from scripts.benchmarks.handoff import Handoff
from scripts.benchmarks.hedging import Hedging
from scripts.benchmarks.machine import this_machine
from scripts.benchmarks.names import Names
from scripts.benchmarks.phase import Phase
from scripts.benchmarks.report import as_json, table, targets
from scripts.benchmarks.series import WARM_UP, Findings
from scripts.benchmarks.small_files import SmallFiles
from scripts.benchmarks.start import Start
from scripts.benchmarks.storm import RemoteStorm
from scripts.benchmarks.stream import Streaming
from scripts.benchmarks.subjects import SUBJECTS
from scripts.benchmarks.tree import Tree
from scripts.benchmarks.unchanged import Unchanged
from scripts.benchmarks.uncontended import Uncontended
from scripts.benchmarks.visibility import Visibility
from scripts.benchmarks.waiters import Waiters
from scripts.benchmarks.yard import Regions, Trial, has_s3, open_yard

PHASES: tuple[Phase, ...] = (Uncontended(), Handoff(), Waiters(), Visibility(), Names(), Unchanged())
TRIALS: tuple[Trial, ...] = (
    Tree(),
    Edits(),
    BigFile(),
    Start(),
    Engines(),
    Streaming(),
    FirstByte(),
    SmallFiles(),
    Hedging(),
    Failover(),
    RemoteStorm(),
)
SMOKE_ROUNDS = 1


def main() -> int:
    """Run the phases asked for and print a table; figures that miss their aims are shown, and are no failure."""
    asked = _arguments()
    # Whoever ends the run must not leave mounts behind.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    machine = this_machine(asked.directory)
    print(f"{machine}\n", flush=True)
    everything = []
    for one, findings in chain(_phases(asked), _trials(asked)):
        print(table(one, findings), flush=True)
        everything.append(findings)
    print(targets(everything), flush=True)
    if asked.json:
        asked.json.write_text(as_json(machine, everything))
    if asked.chart:
        print(drawn(asked.chart, machine, everything))
    return 0


def _phases(asked: argparse.Namespace) -> Iterator[tuple[Phase, Findings]]:
    """What is measured on one ground for all."""
    phases = [phase for phase in PHASES if not asked.phase or phase.name in asked.phase]
    if not phases:
        return
    with open_ground(asked.directory) as ground:
        for phase in phases:
            rounds = asked.rounds or (SMOKE_ROUNDS if asked.smoke else phase.rounds)
            with ground.stage(phase.name) as stage:
                findings = phase.run(stage, WARM_UP + rounds)
            yield phase, findings


def _trials(asked: argparse.Namespace) -> Iterator[tuple[Trial, Findings]]:
    """What is measured on workspaces of its own."""
    with Regions() as regions:
        for trial in TRIALS:
            if asked.phase and trial.name not in asked.phase:
                continue
            if trial.needs_s3 and not asked.phase and not has_s3():
                print(f"{trial.name}: skipped, since no S3 server is installed: `scripts/s3 up 1` installs it\n", flush=True)
                continue
            wanted = tuple(asked.subject or ())
            with open_yard(
                asked.directory, regions, is_smoke=asked.smoke, subjects=wanted, peer_rounds=asked.peer_rounds
            ) as yard:
                findings = trial.run(yard, asked.rounds or (1 if asked.smoke else trial.rounds))
            yield trial, findings


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measure agentfs side by side with its neighbours.")
    names = [each.name for each in (*PHASES, *TRIALS)]
    parser.add_argument("--phase", action="append", choices=names, help="only this; repeat it for more")
    parser.add_argument("--subject", action="append", choices=SUBJECTS, help="only this one; repeat it for more")
    parser.add_argument("--rounds", type=_positive, help="how often each phase does what it measures in each place")
    parser.add_argument(
        "--peer-rounds", type=_positive, default=1, help="how many rounds rclone and s3fs take part in; default: %(default)s"
    )
    parser.add_argument("--smoke", action="store_true", help="only see that every phase works, in about a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--chart", type=Path, metavar="FILE", help="draw FILE.png and FILE.svg; needs matplotlib")
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
