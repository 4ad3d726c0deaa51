"""Undo `device setup`: remove the virtual environment from a board, with the wheels of an installation that was cut."""

from __future__ import annotations

from edgecompress.board import environment
from edgecompress.board.agent import open_agent
from edgecompress.board.provision import check_own_python, find_python
from edgecompress.device_profile import DeviceProfile


def remove(profile: DeviceProfile, *, dry_run: bool = False) -> list[str]:
    """Remove what `setup` made. Harmless when done again. dry_run: only say what would go. A line for each thing.

    UserError: a job or a setup has the board, or setup makes nothing on such a device. StepFailed: it broke.
    """
    check_own_python(profile)
    agent = open_agent(profile)
    try:
        # The board's own Python, as that of the environment goes with it.
        python = find_python(agent, profile.name).command
        agent.refuse_workdir(python, mend=not dry_run)
        found, size = environment.remove(agent, python, really=not dry_run)
    finally:
        agent.close()
    if not found:
        return [f"nothing to remove under {agent.root}"]
    verb = "would be removed" if dry_run else "removed"
    return [*(f"{agent.root}/{name}: {verb}" for name in found), f"{size / 1e6:.1f} MB"]
