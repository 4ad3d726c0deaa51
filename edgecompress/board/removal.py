"""Undo `device setup`: remove the virtual environment from a board, with the wheels of an installation that was cut."""

from __future__ import annotations

from edgecompress.board.agent import last_json, open_agent
from edgecompress.board.provision import check_own_python, find_python
from edgecompress.board.transport import DeviceError, readable
from edgecompress.device_profile import DeviceProfile
from edgecompress.errors import UserError

_REMOVE_S = 600.0
_REMOVE = """
import fcntl, json, os, shutil, sys
root, really = sys.argv[1], sys.argv[2] == "remove"
def held(path):
    try:
        file = open(path)
    except OSError:
        return False
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
jobs = os.path.join(root, "jobs")
names = os.listdir(jobs) if os.path.isdir(jobs) else []
busy = [name for name in names if held(os.path.join(jobs, name, "lock"))]
size, found = 0, []
for name in () if busy else ("venv", "wheels"):
    path = os.path.join(root, name)
    if os.path.islink(path):
        found.append(name)
        if really:
            os.unlink(path)
    elif os.path.isdir(path):
        found.append(name)
        for folder, _, files in os.walk(path):
            size += sum(os.lstat(os.path.join(folder, file)).st_size for file in files)
        if really:
            shutil.rmtree(path)
print(json.dumps({"busy": len(busy), "found": found, "bytes": size}))
"""
"""By the board's own Python, as that of the environment goes with it. A job that lives may be about to start that Python."""


def remove(profile: DeviceProfile, *, dry_run: bool = False) -> list[str]:
    """Remove what `setup` made. Harmless when done again. dry_run: only say what would go. A line for each thing.

    UserError: a job runs or waits there, or setup makes nothing on such a device. StepFailed: it broke.
    """
    check_own_python(profile)
    agent = open_agent(profile)
    try:
        python = find_python(agent, profile.name).command
        agent.refuse_shared(python)
        argv = [python, "-c", _REMOVE, agent.root, "look" if dry_run else "remove"]
        done = agent.again(lambda t: t.run(argv, None, _REMOVE_S))
    finally:
        agent.close()
    answer = last_json(done.stdout)
    if done.status or not isinstance(answer, dict) or not {"busy", "found", "bytes"} <= set(answer):
        said = readable(done.stderr, 500) or readable(done.stdout, 200) or f"exit status {done.status}, no message"
        raise DeviceError(f"{profile.name}: could not remove the environment: {said}")
    if answer["busy"]:
        what, fix = "a job runs or waits there, which uses the environment", "Wait for it, then run this again."
        raise UserError(what, where=profile.name, fix=fix)
    if not answer["found"]:
        return [f"nothing to remove under {agent.root}"]
    freed = f"{answer['bytes'] / 1e6:.1f} MB" if isinstance(answer["bytes"], int) else "size not told"
    verb = "would be removed" if dry_run else "removed"
    return [f"{agent.root}/{readable(str(name), 40)}: {verb}" for name in answer["found"]] + [freed]
