"""One SSH connection, hop by hop: dial, exchange keys, check the host's key, log in with a key.

paramiko's Transport is used directly: its SSHClient prefers one host key type only, mixes up the errors of different
keys, and would look a host up under another name than OpenSSH does. Keys and the agent only; no passwords.
"""

from __future__ import annotations

import logging
import queue
import shlex
import socket
import subprocess
import threading
from collections.abc import Container, Iterator, Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

from edgecompress.board import known_hosts
from edgecompress.board.known_hosts import HostKey
from edgecompress.board.route import Hop
from edgecompress.board.transport import DeviceError, LinkLost, command, readable
from edgecompress.errors import UserError

if TYPE_CHECKING:
    from paramiko import PKey, Transport

KEEPALIVE_S = 15
_AGENT_S = 10.0
_FAST_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")
"""One pass over the data where AES in counter mode and its HMAC take two; paramiko prefers them last."""


class Link:
    """The chain of connections to one device. Steps are separate so that `device trust` can stop before logging in."""

    def __init__(self, device: str, timeout_s: float) -> None:
        self._device, self._timeout_s = device, timeout_s
        self._transports: list[Transport] = []
        self._proxy: subprocess.Popen[bytes] | None = None
        # Without a handler, Python prints paramiko's internal tracebacks on stderr; what matters is raised anyway.
        logging.getLogger("paramiko").addHandler(logging.NullHandler())

    @property
    def transport(self) -> Transport:
        """The connection to the device itself (or to the last hop reached so far)."""
        return self._transports[-1]

    def connect(self, hop: Hop) -> HostKey:
        """Reach a hop through those before it and exchange keys. Returns its host key, not checked. LinkLost on failure."""
        import paramiko

        try:
            transport = paramiko.Transport(self._dial(hop))
        except (OSError, EOFError, paramiko.SSHException) as error:
            raise LinkLost(f"{self._device}: {hop} cannot be reached: {_reason(error)}") from None
        self._transports.append(transport)
        transport.banner_timeout = transport.handshake_timeout = transport.auth_timeout = self._timeout_s
        transport.channel_timeout = self._timeout_s
        options = transport.get_security_options()
        options.key_types = _preferred(options.key_types, self._pinned_kinds(hop))
        options.ciphers = _preferred(options.ciphers, _FAST_CIPHERS)
        try:
            transport.start_client(timeout=self._timeout_s)
            key = transport.get_remote_server_key()
        except paramiko.ssh_exception.IncompatiblePeer as error:
            raise DeviceError(
                f"{self._device}: no algorithm in common with {hop}: {readable(str(error), 300)}"
            ) from None
        except (OSError, EOFError, paramiko.SSHException, ValueError) as error:
            raise LinkLost(f"{self._device}: no SSH answer from {hop}: {_reason(error)}") from None
        return HostKey(key.get_name(), key.asbytes())

    def _dial(self, hop: Hop) -> Any:
        if self._transports:
            peer = (hop.host, hop.port)
            return self.transport.open_channel("direct-tcpip", peer, ("127.0.0.1", 0), timeout=self._timeout_s)
        if not hop.proxy_command:
            connection = socket.create_connection((hop.host, hop.port), timeout=self._timeout_s)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # small questions, each waited for
            return connection
        # A socket pair, as paramiko's own ProxyCommand spins without end once the command has ended.
        ours, theirs = socket.socketpair()
        with theirs:
            self._proxy = subprocess.Popen(
                ["/bin/sh", "-c", f"exec {hop.proxy_command}"],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        return ours

    def _pinned_kinds(self, hop: Hop) -> set[str]:
        """Host key algorithms of pinned keys: asked for first, so that the server shows a key that can be checked."""
        kinds = {p.key.kind for p in known_hosts.lookup(hop.known_hosts, hop.key_name) if not p.revoked}
        # ssh-rsa is the key's type; its signatures have names of their own
        return kinds | {"rsa-sha2-512", "rsa-sha2-256"} if "ssh-rsa" in kinds else kinds

    def log_in(self, hop: Hop) -> None:
        """Authenticate with the first key that is accepted. UserError, with what was tried, when none is."""
        import paramiko

        tried: list[str] = []
        for name, key in self._keys(hop, tried):
            try:
                further = self.transport.auth_publickey(hop.user, key)
            except paramiko.BadAuthenticationType as error:
                raise self._refused(
                    hop, [f"the server accepts only: {readable(', '.join(error.allowed_types), 200)}"]
                ) from None
            except (OSError, EOFError, paramiko.SSHException) as error:
                if not self.transport.is_active() or "timeout" in str(error).lower():
                    what = f"{hop} closed the connection during the login ({len(tried) + 1} keys offered)"
                    raise LinkLost(f"{self._device}: {what}") from None
                tried.append(f"{name}: not accepted")
                continue
            if further:
                raise self._refused(hop, [f"the server asks for more than a key: {readable(', '.join(further), 200)}"])
            self.transport.set_keepalive(KEEPALIVE_S)
            return
        raise self._refused(hop, tried)

    def _refused(self, hop: Hop, tried: list[str]) -> UserError:
        key = shlex.quote(str(hop.identities[0])) if hop.identities else ""
        make = f"ssh-keygen -f {key}" if key else "ssh-keygen"
        copy = f"ssh-copy-id {f'-i {key} ' if key else ''}-p {hop.port} {hop.user}@{hop.host}"
        return UserError(
            f"no key was accepted for {hop.user}@{hop} ({'; '.join(tried) or 'there is no key'})",
            where=self._device,
            fix=f"Make a key, if there is none ({make}), and copy it there ({copy}), load an encrypted one into the agent "
            "(ssh-add), or set user and identity_file in the device profile.",
        )

    def _keys(self, hop: Hop, tried: list[str]) -> Iterator[tuple[str, PKey]]:
        """Keys to offer, named: files first (they were chosen), then the agent's. What cannot be read goes into `tried`."""
        import paramiko

        chosen = set()
        for file in hop.identities:
            with suppress(OSError, UnicodeDecodeError, IndexError):
                chosen.add(file.with_name(file.name + ".pub").read_text().split()[1])
            try:
                key = paramiko.PKey.from_path(file)
            except OSError as error:
                tried.append(f"{file}: {error.strerror}")
            except TypeError:  # what the cryptography library raises for a key with a passphrase
                tried.append(f"{file}: encrypted")
            except (ValueError, paramiko.SSHException, paramiko.pkey.UnknownKeyType):
                tried.append(f"{file}: not a private key that can be read")
            else:
                chosen.add(key.get_base64())
                yield str(file), key
        for agent_key in _agent_keys():
            if not hop.identities_only or agent_key.get_base64() in chosen:
                yield f"the agent's {agent_key.get_name()} key", agent_key

    def close(self) -> None:
        for transport in reversed(self._transports):
            transport.close()
        if self._proxy is not None:
            self._proxy.kill()
            self._proxy.wait()


def check_host_key(hop: Hop, key: HostKey, device: str) -> bool:
    """Whether the key is pinned (True) or the host unknown (False). UserError when it is another one, or was revoked."""
    pinned = known_hosts.lookup(hop.known_hosts, hop.key_name)
    if any(p.revoked and p.key.blob == key.blob for p in pinned):
        raise UserError(f"the key of {hop} was revoked", where=device, fix="Do not connect. Ask whoever revoked it.")
    valid = [p for p in pinned if not p.revoked]
    if any(p.key.blob == key.blob for p in valid):
        return True
    if not valid:
        return False
    raise UserError(
        f"THE KEY OF {hop} HAS CHANGED: it is {key.kind} {key.fingerprint}, pinned is {valid[0].key.kind} "
        f"{valid[0].key.fingerprint} ({valid[0].file}, line {valid[0].line}). Somebody may be listening in, or the "
        "device was installed anew. Nothing was sent to it.",
        where=device,
        fix="Only if you know why it changed, remove the old key: "
        f"ssh-keygen -f {shlex.quote(str(valid[0].file))} -R {shlex.quote(hop.key_name)}; then: {command('trust', device)}",
    )


def need_host_key(hop: Hop, key: HostKey, device: str) -> None:
    """UserError unless the key is the pinned one."""
    if not check_host_key(hop, key, device):
        raise UserError(
            f"the key of {hop} is not known ({key.kind} {key.fingerprint})",
            where=device,
            fix=f"Compare it with the device and pin it: {command('trust', device)}",
        )


def open_link(hops: tuple[Hop, ...], device: str, timeout_s: float) -> Link:
    """A link that is logged in, every host key on the way checked against the pinned ones."""
    link = Link(device, timeout_s)
    with ExitStack() as unless_done:
        unless_done.callback(link.close)
        for hop in hops:
            key = link.connect(hop)
            need_host_key(hop, key, device)
            link.log_in(hop)
        unless_done.pop_all()
    return link


def _preferred(offered: Sequence[str], first: Container[str]) -> tuple[str, ...]:
    return (*(t for t in offered if t in first), *(t for t in offered if t not in first))


def _agent_keys() -> list[Any]:
    """The keys of the SSH agent; none when it does not answer (paramiko waits for it without a limit)."""
    import paramiko

    answers: queue.Queue[list[Any]] = queue.Queue()

    def ask() -> None:
        with suppress(OSError, EOFError, paramiko.SSHException, ValueError):
            answers.put(list(paramiko.Agent().get_keys()))
            return
        answers.put([])

    threading.Thread(target=ask, daemon=True, name="ssh-agent").start()
    try:
        return answers.get(timeout=_AGENT_S)
    except queue.Empty:
        return []


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, socket.gaierror):
        return "its name is not known here"
    text = readable(getattr(error, "strerror", None) or str(error), 300)
    return text or "it closed the connection"
