"""A writer that keeps a record, outside the mount, of what was acknowledged to it; and the check of what must be there."""

import hashlib
import subprocess
import sys
from pathlib import Path

SCRIPT = """if 1:
    import hashlib, os, random, sys

    directory, record_path, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
    source = random.Random(seed)
    record = os.open(record_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(*words):
        os.write(record, (" ".join(map(str, words)) + "\\n").encode())
        os.fsync(record)

    def body():
        return source.randbytes(source.choice([0, 1, 100, 5000, 40_000, 300_000, 1_500_000]))

    def put(path, content, flags):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | flags, 0o644)
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view):]
        if source.random() < 0.5:
            os.fsync(descriptor)
        os.close(descriptor)

    def name(number):
        return f"f{seed}-{number}"

    number = 0
    try:
        while True:
            kind = source.choice(["new", "new", "new", "replace", "append", "mkdir", "move"])
            if kind == "mkdir":
                note("begin", "dir", f"d{seed}-{number}")
                os.mkdir(f"{directory}/d{seed}-{number}")
                note("done", "dir", f"d{seed}-{number}")
                number += 1
            elif kind == "new" or number == 0:
                content = body()
                digest = hashlib.sha256(content).hexdigest()
                note("begin", "new", name(number), digest, len(content))
                put(f"{directory}/{name(number)}", content, os.O_EXCL)
                note("done", "file", name(number), digest, len(content))
                number += 1
            elif kind == "replace":
                content = body()
                target = name(source.randrange(number))
                digest = hashlib.sha256(content).hexdigest()
                note("begin", "file", target, digest, len(content))
                put(f"{directory}/temporary", content, os.O_TRUNC)
                os.rename(f"{directory}/temporary", f"{directory}/{target}")
                note("done", "file", target, digest, len(content))
            elif kind == "move":
                content = body()
                digest = hashlib.sha256(content).hexdigest()
                put(f"{directory}/moving", content, os.O_TRUNC)
                note("begin", "file", name(number), digest, len(content))
                os.rename(f"{directory}/moving", f"{directory}/{name(number)}")
                note("done", "file", name(number), digest, len(content))
                number += 1
            else:
                line = f"line {number} {'x' * source.randrange(1, 2000)}\\n".encode()
                note("begin", "line", line.decode().strip())
                put(f"{directory}/log", line, os.O_APPEND)
                note("done", "line", line.decode().strip())
    except OSError as error:
        print(error.errno)
    """


class Writer:
    """The writing process; `record` is a local file that survives whatever happens to the mount."""

    def __init__(self, directory: Path, record: Path, seed: int) -> None:
        self.record = record
        self._process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(directory), str(record), str(seed)], stdout=subprocess.PIPE, text=True
        )

    def acknowledged(self) -> int:
        """How many operations were acknowledged so far."""
        return self.record.read_text().count("\ndone") if self.record.exists() else 0

    def running(self) -> bool:
        """Whether the writer still writes."""
        return self._process.poll() is None

    def finish(self) -> str:
        """Wait until the writer ends of the error it meets; that errno."""
        output, _ = self._process.communicate(timeout=120)
        assert self._process.returncode == 0
        return output.strip()

    def stop(self) -> None:
        """End the writer now."""
        self._process.kill()
        self._process.communicate(timeout=120)


def lost(directory: Path, record: Path) -> list[str]:
    """What the record says was acknowledged and is not in `directory` byte for byte. [] is what we want.

    Of an operation that had begun and was not acknowledged, both outcomes are right; a new file that was being written, and was
    under no other name before, may hold any part of its content.
    """
    allowed: dict[str, list[tuple[str, str]]] = {}
    directories, lines = [], []
    for row in (line.split(" ", 2) for line in record.read_text().splitlines()):
        state, kind, rest = row
        if kind == "file":
            name, digest, size = rest.split(" ")
            allowed[name] = [(digest, size)] if state == "done" else [*allowed.get(name, [("missing", "")]), (digest, size)]
        elif kind == "dir" and state == "done":
            directories.append(rest)
        elif kind == "line" and state == "done":
            lines.append(rest)
    found = [f"directory {name}" for name in directories if not (directory / name).is_dir()]
    for name, wanted in allowed.items():
        if (seen := _seen(directory / name)) not in [digest for digest, _ in wanted]:
            found.append(f"file {name}: {seen}, wanted one of {wanted}")
    log = (directory / "log").read_text().splitlines() if lines else []
    return found + [f"line {line[:40]}" for line in lines if line not in set(log)]


def _seen(path: Path) -> str:
    if not path.exists():
        return "missing"
    return hashlib.sha256(path.read_bytes()).hexdigest()
