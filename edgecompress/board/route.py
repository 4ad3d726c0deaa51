"""Where an SSH device is and how to get there: the profile's fields over `~/.ssh/config`, as a chain of hops.

Honoured of the configuration: Host, Match (not exec), Include, HostName, Port, User, IdentityFile, IdentitiesOnly, HostKeyAlias,
UserKnownHostsFile, ProxyJump, ProxyCommand. Never honoured: anything that would weaken the check of host keys.
"""

from __future__ import annotations

import getpass
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgecompress.board import known_hosts
from edgecompress.errors import UserError

if TYPE_CHECKING:
    from paramiko import SSHConfig

    from edgecompress.device_profile import DeviceProfile

_DEFAULT_KEYS = ("id_ed25519", "id_ecdsa", "id_rsa")
_SYSTEM_KNOWN_HOSTS = Path("/etc/ssh/ssh_known_hosts")
_MAX_DEPTH = 8
"""Of Include files and of ProxyJump hosts that need a ProxyJump themselves: a loop ends here, with a message."""

_OWN_CONFIG = "Give the device profile an ssh_config file of its own (an empty one will do), or host, port and user."


@dataclass(frozen=True)
class Hop:
    """One SSH server on the way to the device; the last one is the device.

    key_name: its name in the known_hosts files, of which new keys go into the first. identities: private key files, in
    order. identities_only: of the agent's keys, offer only those. proxy_command: reaches this hop (only the first has one).
    """

    host: str
    port: int
    user: str
    key_name: str
    known_hosts: tuple[Path, ...]
    identities: tuple[Path, ...]
    identities_only: bool
    proxy_command: str | None = None

    def __str__(self) -> str:
        return self.host if self.port == 22 else f"{self.host}:{self.port}"


def resolve(profile: DeviceProfile) -> tuple[Hop, ...]:
    """The hops to a device, jump hosts first. UserError when the configuration cannot be read or makes no sense."""
    assert profile.host is not None  # the profile's own validation
    config, file = _read_config(profile.ssh_config)
    return _hops(profile.host, profile.port, profile.user, profile, config, where=file or profile.name, depth=0)


def _hops(
    alias: str, port: int | None, user: str | None, profile: DeviceProfile, config: SSHConfig, *, where: str, depth: int
) -> tuple[Hop, ...]:
    from paramiko import ConfigParseError, CouldNotCanonicalize

    if depth > _MAX_DEPTH:
        raise UserError(
            f"ProxyJump to {alias} does not end", where=where, fix="Remove the loop from the configuration."
        )
    try:
        options = config.lookup(alias)
    except (KeyError, ConfigParseError, CouldNotCanonicalize, OSError) as error:
        raise UserError(f"cannot be used for {alias}: {error}", where=where, fix=_OWN_CONFIG) from None
    host = str(options["hostname"])
    try:
        port = port or int(options.get("port", 22))
    except ValueError:
        raise UserError(
            f"Port {options['port']!r} of {alias} is no number", where=where, fix="Mend the line."
        ) from None
    own_file = profile.identity_file if depth == 0 else None
    identities = [own_file] if own_file else [_home(p) for p in options.get("identityfile", [])]
    hop = Hop(
        host=host,
        port=port,
        user=user or str(options.get("user") or getpass.getuser()),
        key_name=str(options["hostkeyalias"]).lower()
        if "hostkeyalias" in options
        else known_hosts.entry_name(host, port),
        known_hosts=_known_hosts_files(profile, options.get("userknownhostsfile")),
        identities=tuple(identities or [p for name in _DEFAULT_KEYS if (p := Path.home() / ".ssh" / name).exists()]),
        identities_only=str(options.get("identitiesonly", "no")).lower() == "yes",
        proxy_command=options.get("proxycommand") if "proxyjump" not in options else None,
    )
    jumps = str(options.get("proxyjump", "none"))
    if jumps.lower() == "none":
        return (hop,)
    before: tuple[Hop, ...] = ()
    for number, jump in enumerate(jumps.split(",")):
        match = re.fullmatch(r"(?:ssh://)?(?:([^@]+)@)?(\[[^\]]+\]|[^:]+)(?::(\d+))?/?", jump.strip())
        if match is None:
            raise UserError(f"ProxyJump {jump!r} is not [user@]host[:port]", where=where, fix="Mend the line.")
        jump_user, jump_host, jump_port = match[1], match[2].strip("[]"), int(match[3]) if match[3] else None
        chain = _hops(jump_host, jump_port, jump_user, profile, config, where=where, depth=depth + 1)
        # As OpenSSH does it, only the first jump host's own ProxyJump or ProxyCommand counts.
        before += chain if number == 0 else chain[-1:]
    return (*before, hop)


def _home(path: str) -> Path:
    return Path(path).expanduser()


def _known_hosts_files(profile: DeviceProfile, configured: str | None) -> tuple[Path, ...]:
    if profile.known_hosts:
        return (profile.known_hosts,)
    own = tuple(_home(p) for p in (configured or "~/.ssh/known_hosts").split() if p.lower() != "none")
    return (*(own or (_home("~/.ssh/known_hosts"),)), _SYSTEM_KNOWN_HOSTS)


def _read_config(path: Path | None) -> tuple[SSHConfig, str | None]:
    """The configuration, and its file for messages (None: there is none, which is fine unless the profile names one)."""
    from paramiko import ConfigParseError, SSHConfig

    file = path or _home("~/.ssh/config")
    if path is None and not file.exists():
        return SSHConfig(), None
    text = "\n".join(_lines(file, depth=0))
    try:
        return SSHConfig.from_text(text), str(file)
    except (ConfigParseError, ValueError) as error:
        raise UserError(f"not an SSH configuration: {error}", where=str(file), fix="Mend the line.") from None


def _lines(file: Path, *, depth: int) -> list[str]:
    """The lines of a configuration with its Include files in place (paramiko leaves Include out)."""
    if depth > _MAX_DEPTH:
        raise UserError("Include does not end", where=str(file), fix="Remove the loop from the configuration.")
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=str(file), fix="Give the path of a file.") from None
    lines, block = [], "Host *"
    for line in text.splitlines():
        word, _, rest = line.strip().replace("=", " ", 1).partition(" ")
        if word.lower() == "include":
            for pattern in rest.split():
                path = _home(pattern.strip('"'))
                base, name = (
                    (path.parent, path.name) if path.is_absolute() else (_home("~/.ssh") / path.parent, path.name)
                )
                for included in sorted(base.glob(name)):
                    lines += _lines(included, depth=depth + 1)
            lines.append(block)  # the block that the Include line stands in goes on after it
            continue
        if word.lower() == "match" and re.search(r"(^|\s|!)exec\s", rest, re.IGNORECASE):
            # paramiko runs such a command without a limit, and lets it read the terminal
            raise UserError(f"{line.strip()!r}: Match exec is not supported", where=str(file), fix=_OWN_CONFIG)
        if word.lower() in ("host", "match"):
            block = line
        lines.append(line)
    return lines
