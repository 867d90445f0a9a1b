"""docs/settings.md: every key is there, and its examples are settings files."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from unifs import config
from unifs.config_mounts import REMOTE_KINDS, RemoteBase

TEXT = (Path(__file__).resolve().parents[2] / "docs/settings.md").read_text()


@pytest.mark.parametrize("kind", REMOTE_KINDS)
def test_every_key_of_a_remote_mount_is_explained(kind: str) -> None:
    explained = set(re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE))
    assert set(REMOTE_KINDS[kind].__struct_fields__) == explained


def test_the_examples_are_settings_files(tmp_path: Path) -> None:
    examples = re.findall(r"^```toml\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    assert len(examples) == 3
    for number, example in enumerate(examples):
        file = tmp_path / f"{number}.toml"
        file.write_text(example)
        settings = config.load(file=file, state=tmp_path, environment={})
        for mount in settings.mounts.values():
            if isinstance(mount, RemoteBase):
                assert mount.enabled
    assert settings.journal == config.JournalSettings()


def test_the_defaults_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (`[^`]*`|\d+) \|", TEXT, re.MULTILINE)
    defaults = REMOTE_KINDS["s3"]()
    assert len(rows) > 8
    for key, shown in rows:
        value = msgspec.json.encode(getattr(defaults, key)).decode().strip('"')
        assert value.removesuffix(".0") == shown.strip("`"), key
