"""The helper for a board without any: find a Python from its shell, type a short program, and hand over the rest to that."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import secrets
import shlex
import time
import zlib
from importlib import resources

from edgecompress.board.serial_console import INTERRUPT, Console, answer, is_shell
from edgecompress.board.transport import LinkLost, command, readable
from edgecompress.errors import UserError

_LINE = 400
"""Of the helper's text at a time: far below the 1024 characters of busybox's line editor and a terminal's 4096."""

_FIRST = """
import sys,os,tty,termios as t,zlib,base64
f=0;B=t.tcgetattr(f);tty.setraw(f);a=t.tcgetattr(f);a[6][t.VMIN]=0;a[6][t.VTIME]=100;t.tcsetattr(f,t.TCSANOW,a)
os.write(1,("\\n%s%s\\n"%tuple(sys.argv[1:3])).encode());b=b"";p=[]
while 1:
 d=os.read(f,4096)
 if not d:t.tcsetattr(f,t.TCSANOW,B);sys.exit()
 b+=d;*L,b=b.split(b"\\n")
 for l in L:
  try:n,c,x=l.split(b" ");n=int(n);g=zlib.crc32(x)==int(c,16)and n<=len(p)
  except ValueError:continue
  if g:
   p[n:n+1]=[x];os.write(1,b"\\n+%d %s\\n"%(n,c))
   if not x:exec(zlib.decompress(base64.b64decode(b"".join(p))))
"""
"""Typed into the shell. Takes in the helper line by line, each with its number and checksum; gives up after 10 s of silence."""


def find_python(line: Console) -> str:
    """How the shell calls a Python that can run the helper: the PATH's, else the profile's."""
    own, candidates = line.profile.python, ["python3"]
    if own is not None:
        path = '"$HOME"/' + shlex.quote(own[2:]) if own.startswith("~/") else shlex.quote(own)
        candidates.append(path if "/" not in own or own[0] in "/~" else '"$HOME"/' + path)
    answers = []
    for python in candidates:
        for _ in range(3):
            test = f"{python} -Ic 'import sys; sys.exit(sys.version_info < (3, 8))'"
            said = answer(line, test, line.profile.connect_timeout_s)
            if said == "yes":
                return python
            answers.append(said)
            line.say(INTERRUPT)
            line.listen(1.0)
            if said == "no" and answers.count("no") > 1:
                break
    if "no" not in answers:
        raise LinkLost(f"{line.profile.name}: the shell on its console stopped answering")
    raise UserError(
        f"no Python from 3.8 on its console as {' or '.join(candidates)}",
        where=line.profile.name,
        fix=f"Install it there or set python in the profile, then: {command('doctor', line.profile.name)}",
    )


def start(line: Console, python: str, *, exec_it: bool) -> None:
    """exec_it: in place of the shell, so that its end logs out."""
    name, wait_s = line.profile.name, line.profile.connect_timeout_s
    first = base64.b64encode(zlib.compress(_FIRST.encode(), 9)).decode()
    text = base64.b64encode(zlib.compress(_program(line.profile.baud_rate), 9))
    for _ in range(3):
        a, b = secrets.token_hex(4), secrets.token_hex(4)
        run = f"{python} -Ic \"import zlib,base64;exec(zlib.decompress(base64.b64decode('{first}')))\" {a} {b}"
        line.say(f" {'exec ' if exec_it else ''}{run}\n".encode())
        if line.listen(wait_s, until=(a + b).encode()) and _hand_over(line, text):
            return
        # Damaged on the way: an error of the shell or of Python, or a quote that is open still.
        time.sleep(0.2)
        line.say(INTERRUPT)
        line.listen(1.0)
        if not is_shell(line):
            break
    raise LinkLost(f"{name}: its console did not take in the helper; it says: {readable(line.heard, 300)!r}")


def _hand_over(line: Console, text: bytes) -> bool:
    """Line by line, each until it is acknowledged. An empty one is the end."""
    pieces = [*(text[at : at + _LINE] for at in range(0, len(text), _LINE)), b""]
    wait_s = 0.5 + 3 * _LINE * 10 / line.profile.baud_rate
    for number, piece in enumerate(pieces):
        checksum = b"%08x" % zlib.crc32(piece)
        for _ in range(10):
            line.say(b"%d %s %s\n" % (number, checksum, piece))
            if line.listen(wait_s, until=b"+%d %s" % (number, checksum)):
                break
        else:
            return False
    return True


@functools.cache
def helper() -> tuple[dict[str, str], str]:
    """(the modules that the board gets, the version that they have together)."""
    package = resources.files("edgecompress_agent")
    sources = {n: (package / f"{n}.py").read_text(encoding="utf-8") for n in ("console_link", "command", "console")}
    return sources, hashlib.sha256(json.dumps(sources).encode()).hexdigest()[:16]


def _program(baud: int) -> bytes:
    """What the board runs in the end: the modules, and a call. `B` are the terminal's attributes, from what was typed."""
    sources, version = helper()
    return f"""
import sys, types
package = sys.modules["edgecompress_agent"] = types.ModuleType("edgecompress_agent")
package.__path__ = []
for name, source in {sources!r}.items():
    module = sys.modules["edgecompress_agent." + name] = types.ModuleType("edgecompress_agent." + name)
    setattr(package, name, module)
    exec(compile(source, name, "exec"), module.__dict__)
package.console.serve(B, {version!r}, {baud / 10})
sys.exit()
""".encode()
