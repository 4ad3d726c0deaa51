"""Make or remove the engines' environment on the board, while the board's lock is held: no job and no other setup runs beside it.

This file imports nothing of the package, and Python 3.6 understands it: the host sends its text to the board's Python, which is
started with the arguments ROOT and TOKEN. It reads a request, a JSON object, and its answer is the last line of standard output:

    {"do": "make", "options": [of venv], "pip": [[argument, …], …], "limit_s": of each, "wheels": remove ROOT/wheels afterwards}
                                                               → {"made": bool}, or {"failed": "venv" or which pip, "said": its end}
    {"do": "remove", "really": bool}                           → {"found": [name, …], "bytes": of them}
"who": in every request, who asks. Any may answer {"busy": a sentence: who has the board}, {"foreign": a path that is there and is
none of setup's}, or {"error": a sentence}.

TOKEN names one setup or removal. The same one asked again (a link was lost) ends what is left of the first. When nobody
reads the answer any more (an interrupt at the host), what runs here is ended as well. ROOT/venv-unfinished says then that the
environment cannot be trusted, and the next request makes it anew.
"""

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple, Union

_PATIENCE_S = 3.0
"""Whoever reads a sensor or cleans up has the lock for an instant only."""
_ENDING_S = 5.0
"""For pip to put back what it had begun to replace."""
_VENV_S, _LOOK_S = 600.0, 60.0
_SAID_BYTES = 4000
_FITS = "import sys, pip; sys.exit(list(sys.version_info[:2]) != %r)" % list(sys.version_info[:2])
# Every Python here is started with -I: it begins in the user's home, whose json.py or venv.py would come before the library's.
_PIP = ["-I", "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--quiet"]


class _Gone(Exception):
    """Nobody reads the answer any more, or the same host asked again."""


def main(root: Path, token: str) -> Dict[str, Any]:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    signal.signal(signal.SIGINT, lambda number, frame: None)  # goes to the whole group when its children are to end
    os.umask(0o077)
    with contextlib.suppress(OSError):  # it leads its group already
        os.setsid()
    request = json.loads(sys.stdin.read())
    really = request["do"] == "make" or (request["do"] == "remove" and request["really"] and root.is_dir())
    if really:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = _take(root, token, make=really)
    if isinstance(lock, str):
        return {"busy": lock}
    if lock is not None and really:
        record = {"pid": os.getpid(), "token": token, "who": request["who"], "at_s": time.monotonic()}
        os.ftruncate(lock, 0)
        os.pwrite(lock, json.dumps(record).encode(), 0)
    if _is_foreign(root):
        return {"foreign": str(root / "venv")}
    if request["do"] == "remove":
        return _remove(root, really)
    assert lock is not None
    return _make(root, request, lock)


def _stop(number: int, frame: object) -> None:
    raise _Gone


# --- the board's lock ----------------------------------------------------------------------------------------------


def _take(root: Path, token: str, *, make: bool) -> Union[int, str, None]:
    """The board's lock, as a descriptor; None where there is none yet and make is False; or who has it."""
    try:
        lock = os.open(str(root / "lock"), os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if make else 0), 0o600)
    except FileNotFoundError:
        return None
    began, ended = time.monotonic(), 0
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            holder = _setup_that_has(lock)
        if holder is not None and holder["token"] == token and holder["pid"] != ended:
            ended = holder["pid"]
            with contextlib.suppress(ProcessLookupError):
                os.kill(ended, signal.SIGTERM)
        if time.monotonic() - began > (4 * _ENDING_S if ended else _PATIENCE_S):
            return _who_has(root, holder)
        time.sleep(0.1)


def _setup_that_has(lock: int) -> Optional[Dict[str, Any]]:
    """What a setup wrote into the lock, if it lives."""
    try:
        record = json.loads(os.pread(lock, 4096, 0).decode())
        with open("/proc/%d/cmdline" % record["pid"], "rb") as file:  # noqa: PTH123
            alive = str(record["token"]).encode() in file.read().split(b"\0")
        return record if alive else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _who_has(root: Path, setup: Optional[Dict[str, Any]]) -> str:
    if setup is not None:
        since_s = max(0.0, time.monotonic() - setup["at_s"])
        return "`device setup` of %s has had it for %.0f s" % (setup["who"], since_s)
    for job, phase in _jobs(root):
        if phase != "waiting":
            return "a measurement has it (job %s: %s)" % (job, phase)
    return "another process there has its lock, which this names: fuser -v %s" % (root / "lock")


def _jobs(root: Path) -> List[Tuple[str, str]]:
    """(id, phase) of the jobs that wait or run."""
    jobs, found = root / "jobs", []
    for job in sorted(jobs.iterdir()) if jobs.is_dir() else []:
        if _is_held(job / "lock"):
            try:
                phase = str(json.loads((job / "progress.json").read_text())["phase"])
            except (OSError, ValueError, KeyError, TypeError):
                phase = "starting"
            found.append((job.name, phase))
    return found


def _is_held(path: Path) -> bool:
    with contextlib.suppress(OSError), path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


# --- what is done with it ------------------------------------------------------------------------------------------


def _is_foreign(root: Path) -> bool:
    """A directory with the environment's name that holds something else: where workdir is one of the user's own."""
    venv = root / "venv"
    ours = (root / "venv-unfinished").exists() or (venv / "pyvenv.cfg").exists()
    return venv.is_dir() and not ours and any(venv.iterdir())


def _make(root: Path, request: Dict[str, Any], lock: int) -> Dict[str, Any]:
    venv, unfinished = root / "venv", root / "venv-unfinished"
    python = str(venv / "bin" / "python")
    fits = not unfinished.exists() and _run([python, "-I", "-c", _FITS], lock, _LOOK_S)[0] == 0
    unfinished.touch(mode=0o600)
    if not fits:
        status, said = _run(
            [sys.executable, "-I", "-m", "venv", "--clear", *request["options"], str(venv)], lock, _VENV_S
        )
        if status != 0:
            return {"failed": "venv", "said": said}
    venv.chmod(0o700)
    answer, whole = {"made": not fits}, True  # type: Dict[str, Any], bool
    for number, arguments in enumerate(request["pip"]):
        before = _installed(venv)
        status, said = _run([python, *_PIP, *arguments], lock, request["limit_s"])
        if status != 0:
            answer, whole = {"failed": number, "said": said}, _installed(venv) == before
            break
    if whole:
        unfinished.unlink()
    if request["wheels"]:
        shutil.rmtree(str(root / "wheels"), ignore_errors=True)
    return answer


def _installed(venv: Path) -> List[Tuple[str, int]]:
    """Another value once anything was installed or removed."""
    return sorted((str(p), p.stat().st_mtime_ns) for p in venv.glob("lib*/python*/site-packages"))


def _remove(root: Path, really: bool) -> Dict[str, Any]:
    if _jobs(root):  # it may be about to start that Python, or wait for the lock that is held here
        return {"busy": "a job runs or waits there, which uses the environment"}
    size, found = 0, []
    if really and (root / "venv").exists():
        (root / "venv-unfinished").touch(mode=0o600)  # what an end in the middle leaves is not taken for an environment
    for name in ("venv", "wheels"):
        path = root / name
        if path.is_symlink():
            found.append(name)
            if really:
                path.unlink()
        elif path.is_dir():
            found.append(name)
            for folder, _, files in os.walk(str(path)):
                size += sum((Path(folder) / file).lstat().st_size for file in files)
            if really:
                shutil.rmtree(str(path))
    for name in ("older-versions", "venv-unfinished"):
        if really and (root / name).exists():
            (root / name).unlink()
    return {"found": found, "bytes": size}


def _run(argv: List[str], lock: int, limit_s: float) -> Tuple[int, str]:
    """(exit status, the end of what it said) of a command, which holds the lock as well: it is let go when all have ended."""
    try:
        child = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, pass_fds=(lock,)
        )
    except OSError as error:
        return 127, "%s: %s" % (argv[0], error.strerror)
    assert child.stdout is not None
    output, said, until = child.stdout.fileno(), b"", time.monotonic() + limit_s
    watch = select.poll()
    watch.register(1, 0)  # POLLERR and POLLHUP, when nobody reads the answer any more, are told unasked
    watch.register(output, select.POLLIN)
    try:
        while True:
            ended = child.poll() is not None
            events = [number for number, _ in watch.poll(0 if ended else 200)]
            if 1 in events:
                raise _Gone
            if output in events:
                data = os.read(output, 65536)
                said = (said + data)[-_SAID_BYTES:]
                if not data:
                    watch.unregister(output)
            elif ended:
                break
            if time.monotonic() > until:
                _end_children(child)
                return -1, "it did not end in %g s" % limit_s
    except _Gone:
        _end_children(child)
        raise
    return child.returncode, said.decode("utf-8", "replace").strip()


def _end_children(child: "subprocess.Popen[bytes]") -> None:
    """By an interrupt, on which pip puts back what it had begun to replace."""
    os.killpg(os.getpgrp(), signal.SIGINT)
    try:
        child.wait(_ENDING_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


if __name__ == "__main__":
    try:
        answer = main(Path(sys.argv[1]), sys.argv[2])
    except _Gone:
        os.killpg(os.getpgrp(), signal.SIGKILL)  # what is left of its children, and itself
    except OSError as error:
        answer = {"error": "%s: %s" % (error.filename or "its directory", error.strerror)}
    sys.stdout.write(json.dumps(answer) + "\n")
