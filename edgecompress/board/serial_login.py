"""From a silent console to the helper on the board: wake the line, log in, and have `serial_bootstrap` start it.

Prompts are not guessed: a shell is one that joins two random words (the echo of the command does not have them joined). Only
`login:` and `Password:` are recognised by their text. Nothing is sent while a board that starts is counting down for its boot
loader's prompt. A password comes from the environment variable that the profile names, or from the terminal; it is sent only
to a prompt that answered the user's name, and never kept anywhere but in this process.
"""

from __future__ import annotations

import getpass
import os
import re
import sys
import time
from typing import TYPE_CHECKING

from edgecompress_agent import console, console_link

from edgecompress.board.serial_bootstrap import find_python, helper, start
from edgecompress.board.serial_console import CLEAR, INTERRUPT, Console, is_shell
from edgecompress.board.serial_port import SerialPort
from edgecompress.board.transport import LinkLost, readable
from edgecompress.errors import UserError

if TYPE_CHECKING:
    from edgecompress.device_profile import DeviceProfile

LOGIN = re.compile(rb"(?<!ast )\b(?:login|username|Login|Username): ?(?:\r|\n|$|\[|\x1b)")
_PASSWORD = re.compile(rb"(?i)(?:password|passwort|passphrase|passcode)[^\r\n]*: ?(?:\r|\n|$|\[|\x1b)")
_REFUSED = re.compile(rb"(?i)incorrect|login failed|permission denied|account .*expired|access denied")
BOOTING = re.compile(rb"U-Boot |Hit any key|autoboot|Linux version \d|reboot: ")
LISTEN_S = 1.1
"""Before anything is said: a boot loader that counts down prints every second."""
_LOADER = re.compile(rb"(?:^|\n)(?:=>|U-Boot>|grub>) ?$")


def reach_helper(port: SerialPort, profile: DeviceProfile) -> None:
    """Have the helper running at the other end: one that is there still, or a new one.

    LinkLost: nobody answers, or not as a console does. UserError: no user or password, a wrong one, no Python there.
    """
    line = Console(port, profile)
    logged_in = _wake(line)
    if logged_in is not None:
        start(line, find_python(line), exec_it=logged_in)


def _wake(line: Console) -> bool | None:
    """To a shell: whether it had to be logged in at. None: the helper of an earlier connection is there."""
    profile, logged_in, ever = line.profile, False, b""
    _wait_for_boot(line)
    for attempt in range(6):
        line.say(CLEAR if attempt < 3 else INTERRUPT)
        line.listen(profile.connect_timeout_s / 3)
        ever = line.heard or ever
        if any(f.kind == b"I" and f.payload.decode("ascii", "replace") == helper()[1] for f in _frames(line.heard)):
            return None
        if _frames(line.heard):  # of another version: it shall leave
            line.say(console_link.encode(b"h", b"Q", console.NOBODY))
            line.listen(2.0)
        elif BOOTING.search(line.heard):
            _wait_for_boot(line)
        elif _LOADER.search(line.heard):
            what = "its boot loader waits for a command"
            raise UserError(
                what, where=profile.name, fix="Type boot there with a terminal program, or switch it off and on."
            )
        elif LOGIN.search(line.heard):
            _log_in(line)
            logged_in = True
        elif _PASSWORD.search(line.heard):  # somebody gave a name and went away
            line.listen(profile.connect_timeout_s, until=LOGIN)
        elif line.heard and is_shell(line):
            return logged_in
    where = f"{profile.name}: {profile.serial_port} at {profile.baud_rate} baud"
    if not ever:
        hint = "Is the board on, are TX and RX crossed, and is this port the one of its console?"
        raise LinkLost(f"{where}: nobody answers. {hint}")
    odd = sum(not (32 <= b < 127 or b in b"\t\r\n\x08\x1b") for b in ever)
    hint = "Is baud that of its console?" if odd * 4 > len(ever) else "End what runs on the console, or log in there."
    raise LinkLost(f"{where}: neither a login nor a shell answers. It says: {readable(ever, 300)!r}. {hint}")


def _wait_for_boot(line: Console) -> None:
    """Say nothing while text comes: a key would stop a boot loader that counts down."""
    line.heard = b""
    line.listen(LISTEN_S, quiet_s=0.3)
    end = time.monotonic() + line.profile.connect_timeout_s
    while line.heard and time.monotonic() < end:
        booting = BOOTING.search(line.heard) is not None
        line.heard = b""
        line.listen(5.0 if booting else 1.5, quiet_s=0.5)


def _frames(text: bytes) -> list[console_link.Frame]:
    return [f for f in map(console_link.decode, text.split(b"\n")) if f is not None]


def _log_in(line: Console) -> None:
    """At a login prompt: to the moment at which the shell starts. UserError: no user or password, or they are not accepted."""
    profile = line.profile
    if profile.user is None:
        raise UserError("its console asks who logs in", where=profile.name, fix="Set user in the device profile.")
    for attempt in range(2):  # a name that the line damaged is asked for again
        line.say(profile.user.encode() + b"\n")
        line.listen(profile.connect_timeout_s, until=re.compile(_PASSWORD.pattern + rb"|[$#>] ?$"))
        if not _PASSWORD.search(line.heard):
            return
        line.say(password(profile, again=attempt > 0) + b"\n")
        end = time.monotonic() + profile.connect_timeout_s
        while time.monotonic() < end:
            line.listen(1.0, quiet_s=0.5)
            if _REFUSED.search(line.heard) or LOGIN.search(line.heard):
                break
            if re.search(rb"[$#>%] ?(?:\x1b[^\n]*)?$", line.heard):
                return
        else:
            return  # a prompt that looks like none: `is_shell` will tell
        line.listen(profile.connect_timeout_s / 3, until=LOGIN)
        _passwords.pop(_key(profile), None)
    raise UserError(
        f"its console does not accept the password of {profile.user}",
        where=profile.name,
        fix=f"Correct user in the device profile, or the password in {profile.password_env or 'your answer'}.",
    )


_passwords: dict[tuple[str, str], bytes] = {}
"""What a person typed, for a board that has to be logged in at again. In this process only."""


def _key(profile: DeviceProfile) -> tuple[str, str]:
    return str(profile.serial_port), str(profile.user)


def password(profile: DeviceProfile, *, again: bool) -> bytes:
    """From the environment, or from the terminal. UserError: neither has it. again: the one before was not accepted."""
    if profile.password_env is not None:
        text = os.environ.get(profile.password_env)
        if text is None:
            what = f"its console asks for a password, and {profile.password_env} is not set"
            raise UserError(what, where=profile.name, fix=f"export {profile.password_env}=… (in this shell only).")
        secret = text.encode()
    else:
        if not sys.stdin.isatty():
            fix = (
                "Set password_env in the device profile to the name of a variable that holds it, or log in there first."
            )
            raise UserError(
                "its console asks for a password, and nobody is here to type it", where=profile.name, fix=fix
            )
        if _key(profile) not in _passwords:
            said = "not accepted; " if again else ""
            _passwords[_key(profile)] = getpass.getpass(
                f"{profile.name}: {said}password of {profile.user} on its console: "
            ).encode()
        secret = _passwords[_key(profile)]
    if any(b < 32 or b == 127 for b in secret):
        raise UserError("a password with control characters cannot be typed", where=profile.name, fix="Change it.")
    return secret
