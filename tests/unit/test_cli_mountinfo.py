"""Reading what the kernel has mounted."""

from pathlib import Path

from agentfs.cli.liveness import is_dead
from agentfs.cli.mountinfo import Mounted, mount_at, mount_holding, parse_mountinfo

TEXT = rb"""22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 master:2 - ext4 /dev/root rw
30 27 0:50 / /mnt/a\040b\134c\011d rw,nosuid,nodev - fuse.agentfs demo rw,user_id=1000,group_id=1000
31 27 0:51 / /mnt/x rw - tmpfs tmpfs rw
32 27 0:52 / /mnt/x ro,nosuid - fuse.agentfs other ro,user_id=0,group_id=0
33 27 0:53 / /mnt/caf\303\251 rw - fuse.sshfs host: rw,user_id=0
"""


def test_fields_and_octal_escapes() -> None:
    mounts = parse_mountinfo(TEXT)
    ours = [mounted for mounted in mounts if mounted.ours]
    assert [mounted.mountpoint for mounted in ours] == [Path("/mnt/a b\\c\td"), Path("/mnt/x")]
    assert [mounted.source for mounted in ours] == ["demo", "other"]
    assert [mounted.owner for mounted in ours] == [1000, 0]
    assert [mounted.options.split(",")[0] for mounted in ours] == ["rw", "ro"]
    assert mounts[-1].mountpoint == Path("/mnt/café")
    assert mounts[1].owner is None


def test_the_topmost_of_two_mounts_counts() -> None:
    mounted = mount_at(Path("/mnt/x"), parse_mountinfo(TEXT))
    assert mounted is not None
    assert mounted.source == "other"
    assert mount_at(Path("/mnt"), parse_mountinfo(TEXT)) is None


def test_the_mount_that_holds_a_path_is_the_nearest() -> None:
    mounts = parse_mountinfo(TEXT)
    inside = mount_holding(Path("/mnt/x/deep/file"), mounts)
    beside = mount_holding(Path("/mnt/xy/file"), mounts)
    assert inside is not None
    assert beside is not None
    assert (inside.source, beside.source) == ("other", "/dev/root")


def test_a_plain_directory_and_a_missing_one_are_not_dead(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "missing"):
        assert not is_dead(Mounted(directory, "fuse.agentfs", "demo", "rw", 0))
