"""The way to a device: the profile's fields over an SSH configuration."""

from __future__ import annotations

import getpass
from pathlib import Path

import pytest

from edgecompress.board.route import resolve
from edgecompress.device_profile import DeviceProfile
from edgecompress.errors import UserError


def profile(tmp_path: Path, config: str, **fields: object) -> DeviceProfile:
    file = tmp_path / "config"
    file.write_text(config)
    return DeviceProfile.model_validate({"name": "d", "transport": "ssh", "host": "board", "ssh_config": file} | fields)


def test_without_a_configuration(tmp_path: Path) -> None:
    (hop,) = resolve(profile(tmp_path, ""))
    assert (hop.host, hop.port, hop.user, hop.key_name) == ("board", 22, getpass.getuser(), "board")
    assert hop.known_hosts[0] == Path("~/.ssh/known_hosts").expanduser()


def test_alias_and_what_the_profile_says_over_it(tmp_path: Path) -> None:
    config = """
Host board
  HostName 10.0.0.9
  Port 2222
  User pi
  IdentityFile ~/keys/%r
  IdentitiesOnly yes
  UserKnownHostsFile ~/kh1 ~/kh2
"""
    (hop,) = resolve(profile(tmp_path, config))
    assert (hop.host, hop.port, hop.user, hop.key_name) == ("10.0.0.9", 2222, "pi", "[10.0.0.9]:2222")
    assert hop.identities == (Path("~/keys/pi").expanduser(),) and hop.identities_only
    assert hop.known_hosts[:2] == (Path("~/kh1").expanduser(), Path("~/kh2").expanduser())
    (hop,) = resolve(
        profile(tmp_path, config, port=22, user="root", identity_file=tmp_path / "key", known_hosts=tmp_path / "kh")
    )
    assert (hop.port, hop.user, hop.key_name) == (22, "root", "10.0.0.9")
    assert hop.identities == (tmp_path / "key",) and hop.known_hosts == (tmp_path / "kh",)


def test_include_host_key_alias_and_the_block_that_goes_on(tmp_path: Path) -> None:
    (tmp_path / "more.conf").write_text("Host other\n  Port 1\nHost board\n  HostKeyAlias Bench\n")
    config = f"Host board\n  User pi\n  Include {tmp_path}/*.conf\n  Port 2200\n"
    (hop,) = resolve(profile(tmp_path, config))
    assert (hop.user, hop.port, hop.key_name) == ("pi", 2200, "bench")


def test_jump_hosts(tmp_path: Path) -> None:
    config = """
Host board
  ProxyJump me@gate:2022,inner
Host gate
  HostName gate.example
  ProxyCommand nc %h %p
Host inner
  User in
Host direct
  ProxyJump none
"""
    hops = resolve(profile(tmp_path, config))
    assert [(h.user, h.host, h.port) for h in hops[:2]] == [("me", "gate.example", 2022), ("in", "inner", 22)]
    assert hops[0].proxy_command == "nc gate.example 22" and hops[2].host == "board"
    assert len(resolve(profile(tmp_path, config, host="direct"))) == 1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("Host a\n  ProxyJump b\nHost b\n  ProxyJump a\nHost board\n  ProxyJump a", "does not end"),
        ("Include config", "cannot be read|does not end"),
        ("Host board\n  Port many", "is no number"),
        ("Host board\n  ProxyJump a:b:c", r"is not \[user@\]host"),
        ("Match exec true\n  Port 3", "Match exec is not supported"),
        ("Host 'board", "not an SSH configuration"),
    ],
)
def test_mistakes(tmp_path: Path, config: str, message: str) -> None:
    config = config.replace("Include config", f"Include {tmp_path}/config")
    with pytest.raises(UserError, match=message) as caught:
        resolve(profile(tmp_path, config))
    assert caught.value.where and caught.value.fix


def test_a_configuration_that_the_profile_names_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        resolve(DeviceProfile(name="d", transport="ssh", host="board", ssh_config=tmp_path / "absent"))
