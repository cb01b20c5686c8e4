"""Mounted buckets are known by the table of mounts, as proc(5) describes it."""

import pytest

from jamsface_jax.errors import InputError
from jamsface_jax.storage import mounts
from jamsface_jax.storage.run_directory import RunDirectory

# The first line is the example of proc(5), the others have the types that
# `mount` shows for these programs.
TABLE = r"""36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw
22 1 0:20 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 22 0:33 / /gcs rw,nosuid - fuse.gcsfuse my-bucket rw,user_id=0
41 22 0:34 / /with\040blank rw - fuse.rclone remote:b rw
42 22 0:35 / /s3 rw - fuse mountpoint-s3 rw
43 22 0:36 / /sshfs rw - fuse.sshfs host:/home rw
44 22 0:37 / /nfs rw - nfs4 filer:/share rw
45 40 0:38 / /gcs/disk rw - ext4 /dev/sdb rw
46 22 0:39 / /lustre rw - lustre 10.0.0.1@tcp:/fs rw
47 22 0:40 / /twice rw - ext4 /dev/sdc rw
48 47 0:41 / /twice rw - fuse.s3fs s3fs rw
"""


@pytest.fixture
def table(tmp_path, monkeypatch):
  path = tmp_path / "mountinfo"
  path.write_text(TABLE)
  monkeypatch.setattr(mounts, "MOUNTS", str(path))


@pytest.mark.parametrize(
  ("path", "kind"),
  [
    ("/gcs", "gcsfuse"),
    ("/gcs/runs/mine", "gcsfuse"),
    ("/gcs/../gcs/run/", "gcsfuse"),
    ("/with blank/run", "rclone"),
    ("/s3/run", "mountpoint-s3"),
    ("/twice/run", "s3fs"),
  ],
)
def test_mounted_buckets_are_refused(table, path, kind):
  run = RunDirectory(path)
  words = f"--workdir='{path}' is on {kind}, .*gs://BUCKET/RUN"
  with pytest.raises(InputError, match=words), run.held():
    pass
  with pytest.raises(InputError, match=words), run.created_whole():
    pass


@pytest.mark.parametrize(
  "path",
  ["/gcsx/run", "/gcs/disk/run", "/sshfs/r", "/nfs/r", "/lustre/r", "/r"],
)
def test_all_others_are_not(table, path):
  mounts.refuse_mounted_bucket(path, "--workdir")


def test_where_there_is_no_table_nothing_is_refused(monkeypatch):
  monkeypatch.setattr(mounts, "MOUNTS", "/nowhere")
  mounts.refuse_mounted_bucket("/gcs/run", "--workdir")
