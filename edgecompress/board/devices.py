"""A person's dealings with a device: pin its key (`trust`), install engines (`setup`), undo that (`remove`). See doctor.py, too."""

from __future__ import annotations

from collections.abc import Callable

from edgecompress.board import known_hosts
from edgecompress.board.link import Link, check_host_key
from edgecompress.board.provision import setup
from edgecompress.board.removal import remove
from edgecompress.board.route import resolve
from edgecompress.board.transport import LinkLost
from edgecompress.device_profile import DeviceProfile
from edgecompress.errors import StepFailed, UserError

__all__ = ["remove", "setup", "trust"]


def trust(profile: DeviceProfile, confirm: Callable[[str], bool]) -> list[str]:
    """Pin the host keys on the way to a device, each after `confirm(question)`; a sentence for each host.

    UserError: not confirmed, a key that has changed, a local device. StepFailed: it cannot be reached.
    """
    if profile.transport != "ssh":
        what = "it is this machine" if profile.transport == "local" else "it is reached over its serial console"
        raise UserError(f"{what}: there is no key to trust", where=profile.name, fix="Only ssh devices have one.")
    said = []
    hops = resolve(profile)
    link = Link(profile.name, profile.connect_timeout_s)
    try:
        for hop in hops:
            key = link.connect(hop)
            if check_host_key(hop, key, profile.name):
                said.append(f"{hop}: {key.kind} {key.fingerprint} is pinned already")
            else:
                question = (
                    f"{hop} shows the key\n  {key.kind} {key.fingerprint}\n"
                    "Is it the one that the device itself shows with: ssh-keygen -lf "
                    f"/etc/ssh/ssh_host_{key.kind.removeprefix('ssh-').partition('-')[0]}_key.pub ?"
                )
                if not confirm(question):
                    fix = "Compare the fingerprints, then run the command again."
                    raise UserError(f"the key of {hop} was not pinned", where=profile.name, fix=fix)
                known_hosts.pin(hop.known_hosts[0], hop.key_name, key)
                said.append(f"{hop}: {key.kind} {key.fingerprint} is pinned in {hop.known_hosts[0]}")
            if hop is not hops[-1]:
                link.log_in(hop)  # a jump host has to let us through to the next
    except LinkLost as error:
        raise StepFailed(f"{error}. Is it on, and are host and port right?") from None
    finally:
        link.close()
    return said
