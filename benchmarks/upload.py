"""How fast a file reaches a board: the upload of edgecompress over SSH beside OpenSSH's `scp` of the same file.

    python benchmarks/upload.py [--mb 128] [--rounds 6] [--json FILE]

Both go to one sshd of OpenSSH on 127.0.0.1 (its `sftp-server`, its default ciphers), into folders on the same disk. Five ways
are timed, each twice in every round, there and back, so that a drift of the machine cancels:

  scp       the program: connecting, sending, ending
  upload    ours: connecting, the file's SHA-256 here, sending, renaming, closing
  checked   `upload`, and then the agent there reads the file back and answers whether its SHA-256 is right
  put       `upload` without connecting and closing: what a session pays for one more file
  small     `put` in writes of 32 KB, as to a server that does not tell what it takes (OpenSSH before 8.5)

A round's ratio is scp's time over ours: above 1, ours is the faster. Printed: the median of the rounds' ratios with a bootstrap
interval, the least and the greatest. The target is 0.8 for `upload`; exit status 1 when its interval lies below it, 3 when it is
too wide to tell.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from edgecompress.board import upload  # noqa: E402
from edgecompress.board.agent import open_agent  # noqa: E402
from edgecompress.board.ssh import SshTransport  # noqa: E402
from edgecompress.device_profile import DeviceProfile  # noqa: E402
from edgecompress.rundir import file_sha256  # noqa: E402
from tests.board.loopback import Sshd, loopback_sshd  # noqa: E402

TARGET = 0.8
SFTP_SERVER = Path("/usr/lib/openssh/sftp-server")
WAYS = ("upload", "checked", "put", "small")


class Ways:
    """The ways to bring one file there, each as a function that answers its seconds and leaves nothing there."""

    def __init__(self, server: Sshd, folder: Path, file: Path) -> None:
        self.server, self.file, self.sha256 = server, file, file_sha256(file)
        self.known_hosts = folder / "known_hosts"
        self.known_hosts.write_text(f"[127.0.0.1]:{server.port} {server.host_key}\n")
        (folder / "ssh_config").touch()
        self.profile = DeviceProfile(
            name="loopback", transport="ssh", host="127.0.0.1", port=server.port, identity_file=server.key,
            known_hosts=self.known_hosts, ssh_config=folder / "ssh_config", python=sys.executable,
            workdir=str(folder / "board"),
        )  # fmt: skip
        agent = open_agent(self.profile)
        agent.hello()
        agent.close()
        self.blob = Path(self.profile.workdir) / "blobs" / self.sha256

    def scp(self) -> float:
        target = f"127.0.0.1:{self.blob.with_name('scp')}"
        options = ["-q", "-F", "/dev/null", "-i", str(self.server.key), "-P", str(self.server.port)]
        options += ["-o", f"UserKnownHostsFile={self.known_hosts}"]
        began = time.perf_counter()
        subprocess.run(["scp", *options, str(self.file), target], check=True, stdin=subprocess.DEVNULL)
        seconds = time.perf_counter() - began
        self._remove(self.blob.with_name("scp"))
        return seconds

    def upload(self) -> float:
        began = time.perf_counter()
        transport = SshTransport(self.profile)
        transport.put(self.file, str(self.blob))
        transport.close()
        seconds = time.perf_counter() - began
        self._remove(self.blob)
        return seconds

    def checked(self) -> float:
        began = time.perf_counter()
        agent = open_agent(self.profile)
        agent.send(self.file, str(self.blob))
        answer = agent.verb("have", stdin=json.dumps([self.sha256]).encode())
        agent.close()
        seconds = time.perf_counter() - began
        if answer != [self.sha256]:
            raise RuntimeError(f"the file did not arrive whole: {answer}")
        self._remove(self.blob)
        return seconds

    def put(self) -> float:
        return self._put(None)

    def small(self) -> float:
        return self._put(upload.SAFE_REQUEST_BYTES)

    def _put(self, request_bytes: int | None) -> float:
        transport = SshTransport(self.profile)
        transport.home()  # opens the SFTP session
        transport._request_bytes = request_bytes
        began = time.perf_counter()
        transport.put(self.file, str(self.blob))
        seconds = time.perf_counter() - began
        transport.close()
        self._remove(self.blob)
        return seconds

    def _remove(self, file: Path) -> None:
        if file.stat().st_size != self.file.stat().st_size:
            raise RuntimeError(f"{file} has not the size of the file that was sent")
        file.unlink()


def compare(ways: Ways, rounds: int) -> dict[str, list[float]]:
    """Seconds of every transfer, by way; two of each in a round."""
    taken: dict[str, list[float]] = {way: [] for way in ("scp", *WAYS)}
    for number in range(rounds):
        order = ("scp", *WAYS) if number % 2 else (*WAYS, "scp")
        for way in (*order, *reversed(order)):
            os.sync()  # what one wrote does not slow the next
            taken[way].append(getattr(ways, way)())
    return taken


def ratios(taken: dict[str, list[float]], way: str) -> list[float]:
    pairs = zip(zip(taken["scp"][::2], taken["scp"][1::2]), zip(taken[way][::2], taken[way][1::2]))  # noqa: B905
    return [sum(scp) / sum(ours) for scp, ours in pairs]


def interval(values: list[float]) -> tuple[float, float]:
    """95 % bootstrap interval of the median."""
    draws = np.random.default_rng(0).choice(values, size=(10_000, len(values)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return float(low), float(high)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=128, help="size of the file in MB (default: 128)")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the raw figures there")
    arguments = parser.parse_args()
    if not shutil.which("scp"):
        print("needs OpenSSH's scp (Debian: apt install openssh-client)", file=sys.stderr)
        return 3
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        file = folder / "file"
        file.write_bytes(random.Random(0).randbytes(arguments.mb * 10**6))
        subsystem = f"Subsystem sftp {SFTP_SERVER if SFTP_SERVER.exists() else 'internal-sftp'}"
        with loopback_sshd(folder / "sshd", subsystem) as server:
            ways = Ways(server, folder, file)
            ways.scp()  # the first of each fills caches
            ways.upload()
            taken = compare(ways, arguments.rounds)
    summary = {}
    print(f"scp: {arguments.mb / statistics.median(taken['scp']):.0f} MB/s")
    for way in WAYS:
        found = ratios(taken, way)
        low, high = interval(found)
        rate = arguments.mb / statistics.median(taken[way])
        summary[way] = {"ratio": statistics.median(found), "low": low, "high": high, "ratios": found}
        print(
            f"{way}: {rate:.0f} MB/s, {statistics.median(found):.2f} of scp [{low:.2f}, {high:.2f}], "
            f"rounds {min(found):.2f} to {max(found):.2f}"
        )
    if arguments.json:
        version = subprocess.run(["ssh", "-V"], capture_output=True, text=True, check=True).stderr.strip()
        document = {
            "command": f"python benchmarks/upload.py --mb {arguments.mb} --rounds {arguments.rounds}",
            "ssh": version, "cpus": os.cpu_count(), "load_1m_at_the_end": os.getloadavg()[0], "mb": arguments.mb,
            "seconds": taken, "ratios_to_scp": summary,
        }  # fmt: skip
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")
    low, high = interval(ratios(taken, "upload"))
    return 0 if low >= TARGET else 1 if high < TARGET else 3


if __name__ == "__main__":
    sys.exit(main())
