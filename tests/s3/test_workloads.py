"""What people do with a directory, with the real programs, on /s3 over a real SeaweedFS.

The tests are those of ``tests/fuse/test_workloads.py``. After each of them, everything reaches the
service, and the bucket has the bytes that the tree shows.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.fuse import test_workloads as workloads
from tests.s3.story import Story, started
from unifs.mounts.s3.names import key_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers.s3 import S3Server

pytestmark = [pytest.mark.fuse, pytest.mark.slow]

source = workloads.source
test_cp_archives_a_tree = workloads.test_cp_archives_a_tree
test_tar_goes_there_and_back = workloads.test_tar_goes_there_and_back
test_rsync_copies_everything_and_then_nothing = (
    workloads.test_rsync_copies_everything_and_then_nothing
)
test_git_clones_commits_collects_and_checks = workloads.test_git_clones_commits_collects_and_checks
test_sqlite_with_two_writers = workloads.test_sqlite_with_two_writers
test_an_atomic_save_is_never_seen_missing_or_half = (
    workloads.test_an_atomic_save_is_never_seen_missing_or_half
)
test_vim_saves_in_place_with_a_backup = workloads.test_vim_saves_in_place_with_a_backup
test_a_shared_mapping_reaches_the_file = workloads.test_a_shared_mapping_reaches_the_file
test_appends_of_several_processes_are_all_there = (
    workloads.test_appends_of_several_processes_are_all_there
)
test_hard_links_are_one_file = workloads.test_hard_links_are_one_file
test_symlinks_are_followed_and_kept = workloads.test_symlinks_are_followed_and_kept
test_sparse_files_read_as_zeros = workloads.test_sparse_files_read_as_zeros
test_a_program_is_compiled_and_runs = workloads.test_a_program_is_compiled_and_runs
test_a_virtual_environment_is_made_and_works = (
    workloads.test_a_virtual_environment_is_made_and_works
)
test_dd_writes_syncs_and_reads_back = workloads.test_dd_writes_syncs_and_reads_back
test_find_du_and_rm_agree = workloads.test_find_du_and_rm_agree
test_a_removed_open_file_stays_readable_and_writable = (
    workloads.test_a_removed_open_file_stays_readable_and_writable
)
test_many_names_are_each_listed_once = workloads.test_many_names_are_each_listed_once


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, weed_of_session: S3Server) -> Iterator[Story]:
    with started(Story(tmp_path_factory.mktemp("unifs"), weed_of_session)) as made:
        yield made


@pytest.fixture
def place(story: Story) -> Iterator[Path]:
    """An empty directory in a bucket of its own."""
    bucket = story.server.bucket()
    directory = story.root / bucket / "place"
    directory.mkdir()
    yield directory
    story.ctl("sync", str(story.root / bucket))
    (status,) = story.ctl("journal", "status", str(story.root / bucket))
    assert status["quarantined"] == 0
    objects = stored(story, bucket)
    paths = [Path(above) / name for above, _, names in os.walk(directory) for name in names]
    for path in paths:
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode):
            continue
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if found.st_nlink == 1:
            key = key_of(str(path.relative_to(story.root / bucket)))
            assert objects.get(key) == digest, key
        else:
            assert digest in objects.values(), path


def stored(story: Story, bucket: str) -> dict[str, str]:
    """The hash of each object of a bucket, by key."""
    client = story.server.client()
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
    keys = [found["Key"] for page in pages for found in page.get("Contents", [])]
    return {key: hashlib.sha256(story.object(bucket, key)).hexdigest() for key in keys}
