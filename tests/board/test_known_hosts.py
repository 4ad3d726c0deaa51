"""known_hosts files as OpenSSH writes them, read and extended."""

from __future__ import annotations

import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from edgecompress.board.known_hosts import HostKey, entry_name, lookup, pin
from edgecompress.errors import UserError

KEY = "AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti"
OTHER = "AAAAC3NzaC1lZDI1NTE5AAAAIGMqqjpaoamrrOiSrAoJ3Xvw3pTEHjT1kO4BcnYyDwQA"


def found(tmp_path: Path, text: str, name: str) -> list[tuple[int, bool]]:
    file = tmp_path / "known_hosts"
    file.write_text(text)
    return [(p.line, p.revoked) for p in lookup([file, tmp_path / "absent"], name)]


def test_lines(tmp_path: Path) -> None:
    text = f"""# a comment
board,192.168.1.7 ssh-ed25519 {KEY} comment
*.local,!bad.local ssh-ed25519 {KEY}
[board]:2222 ssh-ed25519 {OTHER}
@revoked board ssh-ed25519 {OTHER}
@cert-authority board ssh-ed25519 {KEY}
board ssh-ed25519 not/base64/
board
"""
    assert found(tmp_path, text, entry_name("Board", 22)) == [(2, False), (5, True)]
    assert found(tmp_path, text, "192.168.1.7") == [(2, False)]
    assert found(tmp_path, text, "pi.local") == [(3, False)]
    assert found(tmp_path, text, "bad.local") == []
    assert found(tmp_path, text, entry_name("board", 2222)) == [(4, False)]
    assert found(tmp_path, text, entry_name("board", 2223)) == []


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen")
def test_names_that_openssh_hashed(tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    file.write_text(f"board ssh-ed25519 {KEY}\n[board]:2222 ssh-ed25519 {OTHER}\n")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(file)], check=True, capture_output=True)
    assert "board" not in file.read_text()
    assert [p.line for p in lookup([file], "board")] == [1]
    assert [p.line for p in lookup([file], "[board]:2222")] == [2]
    assert lookup([file], "other") == []


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen")
def test_a_pinned_key_is_one_that_openssh_finds(tmp_path: Path) -> None:
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "key")],
        check=True,
        stdin=subprocess.DEVNULL,
    )
    kind, blob = (tmp_path / "key.pub").read_text().split()[:2]
    file = tmp_path / "made" / "known_hosts"
    import base64

    key = HostKey(kind, base64.b64decode(blob))
    pin(file, "[127.0.0.1]:2222", key)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    file.write_text(file.read_text().rstrip("\n"))  # a file whose last line has no end
    pin(file, "other", key)
    assert len(file.read_text().splitlines()) == 2
    says = subprocess.run(
        ["ssh-keygen", "-F", "[127.0.0.1]:2222", "-l", "-f", str(file)], capture_output=True, text=True
    )
    assert key.fingerprint in says.stdout
    assert [p.key for p in lookup([file], "other")] == [key]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        pin(tmp_path / "file" / "known_hosts", "board", HostKey("ssh-ed25519", b"x"))
