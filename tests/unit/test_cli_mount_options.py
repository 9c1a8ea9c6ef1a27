"""What -o accepts, and what it refuses by name."""

from pathlib import Path

import pytest

from agentfs.cli.mount_options import MountOptions, parse_options
from agentfs.model.errors import Invalid


def test_nothing_given_is_the_default() -> None:
    assert parse_options([]) == parse_options([""]) == parse_options(["defaults,rw"]) == MountOptions()


def test_our_own_options() -> None:
    texts = ["ro,allow_other,uid=1000,gid=100,umask=027", "durability=fsync,lease_ttl=2.5,staleness=1,strict,label=ci job"]
    texts += ["timeout=5,unreachable=erofs,offline,nohedge,cache_size=10G"]
    assert parse_options([*texts, "cache_dir=/c,root=/r"]) == MountOptions(
        read_only=True,
        allow_other=True,
        uid=1000,
        gid=100,
        umask=0o027,
        durability="fsync",
        lease_ttl_seconds=2.5,
        staleness_seconds=1.0,
        strict=True,
        label="ci job",
        timeout_seconds=5.0,
        unreachable="erofs",
        offline=True,
        hedging=False,
        cache_size_bytes=10 << 30,
        cache_dir=Path("/c"),
        root=Path("/r"),
    )


def test_lists_add_up_and_the_last_word_wins() -> None:
    assert not parse_options(["ro", "rw"]).read_only
    assert parse_options(["rw,uid=1", "ro,uid=2"]) == MountOptions(read_only=True, uid=2)
    assert parse_options(["exec,noexec,nosuid"]).kernel == ("noexec", "nosuid")


def test_what_fstab_and_mount_pass_is_accepted() -> None:
    text = "rw,noauto,user,users,user=me,nofail,_netdev,x-systemd.automount,x-gvfs-name=A,relatime,nodev,noatime,comment=x"
    assert parse_options([text]) == MountOptions(kernel=("nodev", "noatime"))


@pytest.mark.parametrize(
    "word",
    [
        "frob",
        "frob=1",
        "uid",
        "uid=",
        "uid=me",
        "uid=-1",
        "uid=4294967295",
        "gid=²",
        "umask=9",
        "umask=1777",
        "durability=never",
        "strict=1",
        "lease_ttl",
        "lease_ttl=soon",
        "staleness=",
        "label=",
        "cache_dir=relative",
        "timeout=long",
        "unreachable=never",
        "unreachable",
        "offline=1",
        "cache_size=",
        "cache_size=big",
        "ro=1",
        "nodev=1",
    ],
)
def test_what_makes_no_sense_is_refused_by_name(word: str) -> None:
    with pytest.raises(Invalid, match=word.partition("=")[0]):
        parse_options([word])


@pytest.mark.parametrize("seconds", ["0.9", "3601", "-1", "nan", "inf"])
def test_a_lease_ttl_has_bounds(seconds: str) -> None:
    with pytest.raises(Invalid, match=r"lease TTL .* 1 to 3600"):
        parse_options([f"lease_ttl={seconds}"])


@pytest.mark.parametrize("seconds", ["60.5", "-0.1", "nan", "inf"])
def test_staleness_has_bounds(seconds: str) -> None:
    with pytest.raises(Invalid, match=r"staleness .* 0 to 60"):
        parse_options([f"staleness={seconds}"])


@pytest.mark.parametrize("seconds", ["0", "3601", "nan"])
def test_a_timeout_has_bounds(seconds: str) -> None:
    with pytest.raises(Invalid, match=r"timeout .* 1 to 3600"):
        parse_options([f"timeout={seconds}"])


def test_a_cache_has_a_least_size() -> None:
    assert parse_options(["cache_size=64M"]).cache_size_bytes == 64 << 20
    with pytest.raises(Invalid, match=r"63\.9 MiB: it needs 64\.0 MiB"):
        parse_options(["cache_size=67000000"])


def test_the_bounds_themselves_are_allowed() -> None:
    for text in ("lease_ttl=1,staleness=0", "lease_ttl=3600,staleness=60"):
        parse_options([text])


def test_sloppy_ignores_what_is_unknown_but_not_what_is_wrong() -> None:
    assert parse_options(["sloppy,frob,ro"]) == MountOptions(read_only=True)
    with pytest.raises(Invalid):
        parse_options(["sloppy,uid=me"])
