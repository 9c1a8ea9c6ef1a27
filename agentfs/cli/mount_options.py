"""What `-o` may say: our own options, and those that mount(8) and fstab pass to every filesystem."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, cast, get_args

from agentfs.chunks.edge_bound import MIN_BYTES
from agentfs.cli.amounts import bytes_text, parse_bytes
from agentfs.cli.workspace_file import Durability
from agentfs.model.errors import Invalid

Unreachable = Literal["eio", "erofs"]

_KERNEL: Final = frozenset(
    {
        *("exec", "noexec", "suid", "nosuid", "dev", "nodev", "sync", "async", "dirsync"),
        *("atime", "noatime", "diratime", "nodiratime"),
    },
)
"""Options that the kernel applies to any filesystem: they go to FUSE as they are."""

_IGNORED: Final = frozenset(
    {
        *("defaults", "auto", "noauto", "user", "nouser", "users", "owner", "group", "nofail", "_netdev", "comment"),
        *("relatime", "norelatime", "strictatime", "lazytime", "nolazytime", "silent", "loud", "default_permissions", "sloppy"),
    },
)
"""Options that mean something to mount(8) or systemd only, or that say what is so anyway."""


LEASE_TTL_SECONDS: Final = (1, 3600)
STALENESS_SECONDS: Final = (0, 60)
TIMEOUT_SECONDS: Final = (1, 3600)
"""The least and the most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MountOptions:
    """What was asked of a mount. None leaves the workspace's or the system's default. `kernel` goes to FUSE as it is.

    Raises Invalid for a lease TTL, a staleness, a timeout or a cache size out of bounds.
    """

    read_only: bool = False
    allow_other: bool = False
    strict: bool = False
    replay: bool = True
    offline: bool = False
    hedging: bool = True
    uid: int | None = None
    gid: int | None = None
    umask: int | None = None
    durability: Durability | None = None
    lease_ttl_seconds: float | None = None
    staleness_seconds: float | None = None
    timeout_seconds: float | None = None
    unreachable: Unreachable | None = None
    label: str | None = None
    cache_size_bytes: int | None = None
    cache_dir: Path | None = None
    root: Path | None = None
    kernel: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_bounds("lease TTL", self.lease_ttl_seconds, *LEASE_TTL_SECONDS)
        _check_bounds("staleness", self.staleness_seconds, *STALENESS_SECONDS)
        _check_bounds("timeout", self.timeout_seconds, *TIMEOUT_SECONDS)
        if self.cache_size_bytes is not None and self.cache_size_bytes < MIN_BYTES:
            raise Invalid(f"a cache of {bytes_text(self.cache_size_bytes)}: it needs {bytes_text(MIN_BYTES)} at least")


def _check_bounds(name: str, seconds: float | None, least: int, most: int) -> None:
    if seconds is not None and not least <= seconds <= most:
        raise Invalid(f"a {name} of {seconds:g} s: it can be {least} to {most} s")


def parse_options(lists: Iterable[str], defaults: MountOptions | None = None) -> MountOptions:
    """The options in comma-separated lists, and `defaults` for the rest; the last of two that contradict each other wins.

    Raises Invalid naming the option. With `sloppy` among them (mount(8)'s -s), unknown ones are ignored.
    """
    words = [word for text in lists for word in text.split(",") if word]
    sloppy = "sloppy" in words
    options = defaults or MountOptions()
    for word in words:
        options = _with(options, word, sloppy=sloppy)
    return options


def _with(options: MountOptions, word: str, *, sloppy: bool) -> MountOptions:
    name, given, value = word.partition("=")
    if not given and name in _FLAGS:
        return replace(options, **cast("dict[str, Any]", _FLAGS[name]))
    if given and name in _VALUES:
        field, read = _VALUES[name]
        return replace(options, **cast("dict[str, Any]", {field: read(name, value)}))
    if not given and name in _KERNEL:
        return replace(options, kernel=(*(old for old in options.kernel if not _contradict(old, name)), name))
    if sloppy or name.startswith(("x-", "X-")) or name in _IGNORED:
        return options
    raise Invalid(f"unknown mount option {word!r}: `agentfs mount --help` lists them")


def _contradict(one: str, other: str) -> bool:
    return one == other or one == f"no{other}" or other == f"no{one}" or {one, other} == {"sync", "async"}


def _number(name: str, value: str) -> int:
    if not value.isascii() or not value.isdigit() or int(value) >= 2**32 - 1:
        raise Invalid(f"mount option {name}={value}: a user or group number is needed, such as {name}=1000")
    return int(value)


def _seconds(name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise Invalid(f"mount option {name}={value}: a number of seconds is needed, such as {name}=10") from None


def _size(name: str, value: str) -> int:
    try:
        return parse_bytes(value)
    except Invalid as error:
        raise Invalid(f"mount option {name}: {error}") from None


def _octal(name: str, value: str) -> int:
    try:
        mask = int(value, 8)
    except ValueError:
        mask = -1
    if not 0 <= mask <= 0o777:
        raise Invalid(f"mount option {name}={value}: an octal mask is needed, such as {name}=022")
    return mask


def _one_of(kind: object) -> Callable[[str, str], str]:
    words = get_args(kind)

    def read(name: str, value: str) -> str:
        if value not in words:
            raise Invalid(f"mount option {name}={value}: it can be {' or '.join(words)}")
        return value

    return read


def _text(name: str, value: str) -> str:
    if not value or len(value) > 255:
        raise Invalid(f"mount option {name} needs a value of 1 to 255 characters")
    return value


def _absolute(name: str, value: str) -> Path:
    path = Path(value)
    if not path.is_absolute():
        raise Invalid(f"mount option {name}={value}: an absolute path is needed, since mount(8) runs from anywhere")
    return path


_FLAGS: Final[dict[str, dict[str, bool]]] = {
    "ro": {"read_only": True},
    "rw": {"read_only": False},
    "allow_other": {"allow_other": True},
    "strict": {"strict": True},
    "replay": {"replay": True},
    "noreplay": {"replay": False},
    "offline": {"offline": True},
    "hedge": {"hedging": True},
    "nohedge": {"hedging": False},
}

_VALUES: Final[dict[str, tuple[str, Callable[[str, str], object]]]] = {
    "uid": ("uid", _number),
    "gid": ("gid", _number),
    "umask": ("umask", _octal),
    "durability": ("durability", _one_of(Durability)),
    "lease_ttl": ("lease_ttl_seconds", _seconds),
    "staleness": ("staleness_seconds", _seconds),
    "timeout": ("timeout_seconds", _seconds),
    "unreachable": ("unreachable", _one_of(Unreachable)),
    "label": ("label", _text),
    "cache_size": ("cache_size_bytes", _size),
    "cache_dir": ("cache_dir", _absolute),
    "root": ("root", _absolute),
}
