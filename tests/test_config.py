"""The settings: defaults, places, and one clear sentence for every mistake."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from unifs import config
from unifs.errors import ConfigInvalid


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(text)
    return path


def load(tmp_path: Path, text: str, **overrides: object) -> config.Settings:
    environment = {"HOME": str(tmp_path)}
    return config.load(None, write(tmp_path, text), overrides, environment)


def test_without_any_file_there_are_three_mounts_and_the_documented_places(tmp_path: Path) -> None:
    settings = config.load(environment={"HOME": str(tmp_path)})
    assert settings.config_file is None
    assert settings.state_directory == tmp_path / ".local/state/unifs"
    assert settings.socket_path == tmp_path / ".local/state/unifs/control.sock"
    assert list(settings.mounts) == ["ipfs", "mfs", "local"]
    assert isinstance(settings.mounts["local"], config.LocalMount)
    assert settings.mounts["local"].directories == {}


def test_the_state_directory_is_the_option_then_the_environment_then_xdg(tmp_path: Path) -> None:
    environment = {"HOME": "/h", "XDG_STATE_HOME": "/x", "UNIFS_HOME": "/u"}
    assert config.state_directory(Path("/o"), environment) == Path("/o")
    assert config.state_directory(None, environment) == Path("/u")
    del environment["UNIFS_HOME"]
    assert config.state_directory(None, environment) == Path("/x/unifs")
    environment["XDG_STATE_HOME"] = "relative"
    assert config.state_directory(None, environment) == Path("/h/.local/state/unifs")


def test_a_runtime_directory_holds_one_socket_per_state_directory(tmp_path: Path) -> None:
    environment = {"XDG_RUNTIME_DIR": str(tmp_path)}
    one = config.socket_path(Path("/state/one"), environment)
    two = config.socket_path(Path("/state/two"), environment)
    assert one.parent == two.parent == tmp_path / "unifs"
    assert one != two
    missing = {"XDG_RUNTIME_DIR": str(tmp_path / "missing")}
    assert config.socket_path(Path("/s"), missing) == Path("/s/control.sock")


def test_every_kind_of_setting_is_read(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        """
        profile = "unixfs-v0-2015"
        allow_other = true
        [cache]
        memory_bytes = "32 MiB"
        disk_bytes = "1.5GB"
        [deadlines]
        lookup_s = 2
        [mounts.mfs]
        read_only = true
        [mounts.ipfs]
        enabled = false
        [mounts.local]
        kind = "local"
        attribute_timeout_s = 0.5
        [mounts.local.directories]
        music = "/srv/music"
        home = "~"
        """,
    )
    assert settings.profile == "unixfs-v0-2015"
    assert settings.allow_other
    assert settings.cache.memory_bytes == 32 * config.MIB
    assert settings.cache.disk_bytes == 1_500_000_000
    assert settings.deadlines.lookup_s == 2.0
    assert settings.deadlines.read_s == 30.0
    mfs, local = settings.mounts["mfs"], settings.mounts["local"]
    assert isinstance(mfs, config.MfsMount)
    assert mfs.read_only
    assert isinstance(local, config.LocalMount)
    assert local.directories["music"] == "/srv/music"
    assert Path(local.directories["home"]).is_absolute()
    assert not settings.mounts["ipfs"].enabled


def test_the_command_line_overrides_the_file_where_it_says_something(tmp_path: Path) -> None:
    text = "read_only = true\noffline = true\n"
    settings = load(tmp_path, text, read_only=False, offline=None, allow_other=True)
    assert (settings.read_only, settings.offline, settings.allow_other) == (False, True, True)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("cahce = 1", "cahce is not a setting; did you mean cache?"),
        (
            "[cache]\nmemory_byte = 1",
            "cache.memory_byte is not a setting; did you mean memory_bytes?",
        ),
        ("[mounts.local.directorys]\na = '/'", "did you mean directories?"),
        ("zzz = 1", "zzz is not a setting; there are allow_other"),
        ("cache = 1", "cache has to be a table [cache]"),
        (
            "[cache]\nmemory_bytes = true",
            "cache.memory_bytes: expected a whole number, got true or",
        ),
        ("[cache]\nmemory_bytes = -1", "cache.memory_bytes: expected a whole number >= 0"),
        ("[cache]\nmemory_bytes = '3 bananas'", "'3 bananas' is not a size such as 64 MiB"),
        ("offline = 'yes'", "offline: expected true or false, got text"),
        ("[deadlines]\nlookup_s = 'long'", "deadlines.lookup_s: expected a number, got text"),
        ("profile = 'v3'", "profile: 'v3' is not one of unixfs-v1-2025"),
        ("profile = ['v3']", "profile: ['v3'] is not one of unixfs-v1-2025"),
        ("log_level = 'loud'", "log_level: 'loud' is not one of debug"),
        ("node = 'kubo'", "node: 'kubo' is not one of embedded"),
        ("mounts = 3", "mounts has to be tables"),
        ("[mounts]\nmfs = 3", "mounts.mfs has to be a table"),
        ("[mounts.aws]\n", "mounts.aws needs a kind: one of ipfs, mfs, local, s3"),
        (
            "[mounts.x]\nkind = 'lokal'",
            "mounts.x.kind: 'lokal' is no kind of mount; did you mean local?",
        ),
        ("[mounts.x]\nkind = 3", "mounts.x.kind: 3 is no kind of mount"),
        ("[mounts.x]\nkind = 'mfs'", "a mount of kind mfs is always called mfs"),
        ("[mounts.'.unifs']\nkind = 'mfs'", "cannot be a directory's name here"),
        ("[mounts.local.directories]\n'a/b' = '/'", "'a/b' cannot be a directory's name here"),
        (
            "[mounts.local.directories]\na = 'b'",
            "mounts.local.directories.a: 'b' has to be an absolute",
        ),
        ("[mounts.local.directories]\na = 1", "expected text, got a whole number"),
        ("[mounts.local]\ndirectories = 1", "mounts.local.directories: expected a table"),
        ("a = ", "is not TOML"),
    ],
)
def test_a_mistake_is_one_sentence_naming_the_key_and_the_file(
    tmp_path: Path, text: str, sentence: str
) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        load(tmp_path, text)
    assert sentence in str(caught.value)
    assert "config.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_asked_for_must_exist_and_be_readable_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="there is no settings file"):
        config.load(file=tmp_path / "missing.toml", environment={})
    with pytest.raises(ConfigInvalid, match="there is no settings file"):
        config.load(environment={"UNIFS_CONFIG": str(tmp_path / "missing.toml")})
    (tmp_path / "latin.toml").write_bytes(b"# caf\xe9\n")
    with pytest.raises(ConfigInvalid, match="not UTF-8 at byte 5"):
        config.load(file=tmp_path / "latin.toml", environment={})
    with pytest.raises(ConfigInvalid, match="cannot be read"):
        config.load(file=tmp_path, environment={})


def test_every_setting_says_what_it_is() -> None:
    schema = msgspec.json.schema(config.FileSettings)
    silent = [
        f"{name}.{key}"
        for name, definition in schema["$defs"].items()
        for key, value in definition["properties"].items()
        if key not in ("kind", "mounts") and "description" not in value and "$ref" not in str(value)
    ]
    assert silent == []
