"""What a remote mount can be told, and how a mistake is said."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from unifs import config
from unifs.config_mounts import S3Settings
from unifs.control.settings_text import as_toml
from unifs.errors import ConfigInvalid

if TYPE_CHECKING:
    from pathlib import Path


def load(tmp_path: Path, text: str) -> config.Settings:
    file = tmp_path / "config.toml"
    file.write_text(text)
    return config.load(file=file, state=tmp_path / "state", environment={})


def test_several_services_are_several_mounts(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        """
        [journal]
        writeback_delay_s = 0.5
        [mounts.s3]
        [mounts.backup]
        kind = "s3"
        endpoint = "http://127.0.0.1:8333"
        region = "eu-central-1"
        credentials = "work"
        bucket = "photos"
        prefix = "2026/"
        addressing = "path"
        requester_pays = true
        storage_class = "STANDARD_IA"
        encryption = "c"
        encryption_key = "photos-key"
        checksum = "crc32c"
        keep_attributes = true
        parallel_max = 8
        fresh_s = 5
        conflicts = "theirs"
        durability = "backend"
        read_only = true
        """,
    )
    s3, backup = settings.mounts["s3"], settings.mounts["backup"]
    assert s3 == S3Settings()
    assert isinstance(backup, S3Settings)
    assert backup.source() == "http://127.0.0.1:8333/photos/2026"
    assert (backup.parallel_max, backup.fresh_s, backup.conflicts) == (8, 5.0, "theirs")
    assert settings.journal.writeback_delay_s == 0.5
    assert {"mfs", "ipfs", "local"} < set(settings.mounts)


def test_what_is_shown_is_a_settings_file_that_says_the_same(tmp_path: Path) -> None:
    settings = load(tmp_path, "[mounts.'my s3']\nkind = 's3'\nregion = 'eu-west-1'\n")
    again = load(tmp_path, as_toml(settings))
    assert again.mounts == settings.mounts


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("endpoint = 's3.example.com'", "endpoint has to be like https://s3.example.com"),
        ("endpoint = 'http://h:99999'", "endpoint has to be like https://s3.example.com"),
        ("endpoint = 'http://h/bucket'", "a bucket stands in the key bucket"),
        ("endpoint = 'https://key:hunter2@h'", "a user or password has no place in it"),
        ("prefix = 'a/'", "mounts.s3.prefix needs mounts.s3.bucket"),
        ("bucket = 'box'\nprefix = '/a/'", "'/a/' has to be like a/b/"),
        ("bucket = 'box'\nprefix = 'a'", "'a' has to be like a/b/"),
        ("bucket = 'a/b'", "'a/b' cannot be a bucket's name"),
        ("region = 'eu west'", "region: 'eu west' has to be like eu-central-1"),
        ("storage_class = 'no class'", "'no class' has to be like STANDARD_IA"),
        ("anonymous = true\nprofile = 'p'", "anonymous and profile cannot be given together"),
        ("credentials = 'c'\nprofile = 'p'", "credentials and profile cannot be given together"),
        ("encryption = 'c'", "encryption = 'c' needs mounts.s3.encryption_key"),
        ("encryption_key = 'k'", "encryption_key needs mounts.s3.encryption: kms or c"),
        ("encryption = 'aes'", "'aes' is not one of"),
        ("parallel_max = 0", "parallel_max: expected a whole number >= 1"),
        ("secret_key = 'hunter2'", "secret_key is not a setting"),
        ("keep_cids = true", "keep_cids is not a setting"),
        ("conflicts = 'mine'", "'mine' is not one of keep-both, ours, theirs"),
    ],
)
def test_a_mistake_is_one_sentence_without_secrets(
    tmp_path: Path, text: str, sentence: str
) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        load(tmp_path, f"[mounts.s3]\n{text}\n")
    assert sentence in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_the_names_of_the_fixed_mounts_are_theirs(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="mfs is the name of the mount of kind mfs"):
        load(tmp_path, "[mounts.mfs]\nkind = 's3'\n")
    with pytest.raises(ConfigInvalid, match="no kind of backend"):
        config.parse_remote("mfs", {"kind": "mfs"})
