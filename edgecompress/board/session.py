"""Measurements on a device, whatever happens to the link, the host or the agent meanwhile.

A job is a file up and a file down. In between the agent works alone, so a lost link costs nothing: the session connects
again and asks how the job stands; a host that was killed finds the job, running or done, when it asks for it again.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from edgecompress_agent import wire
from edgecompress_agent.errors import AgentError

from edgecompress.board.agent import VERB_S, Agent, open_agent
from edgecompress.board.hostmeter import HostMeter
from edgecompress.board.reading import read_once
from edgecompress.board.transport import DeviceError, cleaned, readable
from edgecompress.device_profile import DeviceProfile
from edgecompress.errors import StepFailed, UserError
from edgecompress.progress import SILENT, Progress, Task, furthest

_HASH_BYTES_PER_S = 5e6
"""What a slow board hashes of blobs, at least."""

_STATUS_AT_S = (0.5, 2.0)
_STATUS_EVERY_S = 15.0
"""Looking for the result is a file's stat. Asking for the status starts a Python on the device, beside what is being
measured there: it is done twice at the beginning, and then rarely."""

_AFTER_DEADLINE_S = 120.0
"""The agent ends a job at its deadline by itself; the host waits so much longer before it steps in."""

_QUIET_LOOK_S = 10.0
"""While power is measured, even looking for the file is done rarely, and asking for the status not at all."""

_WAIT_FOR_BOARD_S = 6 * 3600.0
_STARTS = 2
_JOB_LIMIT_BYTES = 2**20


class Session:
    """One device. Made by `connect`; a context manager, or call `close`. Not for use from several threads at once."""

    def __init__(self, profile: DeviceProfile, agent: Agent) -> None:
        self.profile = profile
        self._agent = agent
        self._pruned = False

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Drop the connection. What runs on the device goes on."""
        self._agent.close()

    def hello(self) -> wire.Hello:
        """See `Agent.hello`."""
        return self._agent.hello()

    def bring(self) -> None:
        """See `Agent.bring`."""
        self._agent.bring()

    def measure(
        self, job: wire.Job, blobs: Mapping[str, Path], progress: Progress = SILENT, label: str = ""
    ) -> wire.Result:
        """Run a job, or join or collect the one of this id that is there already. blobs: SHA-256 → file, of all in the job.

        A result with status "failed" is returned as it is. UserError: the device lacks the engine. StepFailed: the device
        stayed out of reach for `profile.reconnect_s`, or its agent did not end the job; the job can be asked for again.
        """
        self.check_engine(job.engine, job.providers)
        self._prune(progress)
        with progress.task(label or f"measuring on {self.profile.name}", total=1.0) as task:
            self._agent.notice, self._agent.answered = task.describe, lambda: task.advance(0)
            try:
                if self.profile.meter_at == "host" and job.power is not None:
                    return scoped(self._measure_with_meter(job, blobs, progress, task), self.profile.scope)
                return scoped(self._measure(job, blobs, progress, task), self.profile.scope)
            finally:
                self._agent.notice, self._agent.answered = lambda text: None, lambda: None

    def _measure_with_meter(
        self, job: wire.Job, blobs: Mapping[str, Path], progress: Progress, task: Task
    ) -> wire.Result:
        """With the meter at this machine. One that cannot be opened is a reason, and the rest is measured."""
        try:
            meter = HostMeter(self.profile, self._agent)
        except (AgentError, OSError) as error:
            bare = dataclasses.replace(job, sensor="none", sensor_options={}, power=None)
            result = self._measure(bare, blobs, progress, task)
            return dataclasses.replace(result, sensor=self.profile.sensor, power_reason=str(error))
        with meter:
            return meter.join(self._measure(meter.job(job), blobs, progress, task, meter))

    def _measure(
        self,
        job: wire.Job,
        blobs: Mapping[str, Path],
        progress: Progress,
        task: Task,
        meter: HostMeter | None = None,
    ) -> wire.Result:
        agent, encoded = self._agent, wire.encode(job)
        directory = f"{agent.root}/jobs/{job.job_id}"
        status = agent.ask(wire.Status, "status", job.job_id)
        if status.state != "absent" and not self._is_there(job, f"{directory}/job.json"):
            # The same id with other contents: what it would answer was not asked.
            self._discard(job)
            status = wire.Status("absent")
        starts = 0
        while status.state != "done":
            if status.state in ("absent", "lost"):
                if starts == _STARTS:
                    log = readable(status.log or "", 1500) or "empty"
                    raise StepFailed(
                        f"{self.profile.name}: the agent was lost twice in this job; the end of its log: {log}"
                    )
                starts += 1
                self._send_blobs(job, blobs, progress, task)
                agent.again(lambda t: t.mkdirs(directory))
                agent.again(lambda t: t.put(encoded, f"{directory}/job.json"))
                status = agent.ask(wire.Status, "start", job.job_id)
            else:
                status = self._wait(job, f"{directory}/result.json", task, meter)
        try:
            data = agent.again(lambda t: t.get(f"{directory}/result.json"))
        except DeviceError:
            self._discard(job)
            raise
        try:
            result = cleaned(wire.decode(wire.Result, data))
            if result.job_id != job.job_id:
                raise wire.WireError(f"it is for job {result.job_id}")
        except wire.WireError as error:
            self._discard(job)  # asked again, the device shall measure anew and not answer the same
            raise DeviceError(f"{self.profile.name}: its result is not one: {readable(str(error), 500)}") from None
        self._discard(job)
        return result

    def _prune(self, progress: Progress) -> None:
        """Once a session, have the device remove what nobody used there for `profile.keep_days`."""
        if self._pruned or self.profile.keep_days is None:
            return
        answer = self._agent.verb("prune", f"{self.profile.keep_days:g}")
        self._pruned = True
        removed, freed = (answer.get(key) if isinstance(answer, dict) else None for key in ("removed", "bytes"))
        if isinstance(removed, int) and isinstance(freed, int) and removed:
            days = f"{self.profile.keep_days:g} days"
            progress.say(
                f"{self.profile.name}: removed {removed} files and jobs there ({freed / 1e6:.1f} MB), unused for {days}"
            )

    def _discard(self, job: wire.Job) -> None:
        self._agent.ask(wire.Status, "cancel", job.job_id)
        self._agent.verb("clean", job.job_id)

    def _is_there(self, job: wire.Job, path: str) -> bool:
        """Whether the job file on the device asks for the same (compared as records: 60 and 60.0 are one deadline)."""
        try:
            return wire.decode(wire.Job, self._agent.again(lambda t: t.get(path, _JOB_LIMIT_BYTES))) == job
        except (FileNotFoundError, wire.WireError):
            return False

    def _send_blobs(self, job: wire.Job, blobs: Mapping[str, Path], progress: Progress, task: Task) -> None:
        agent, wanted = self._agent, {b.sha256: b for b in (job.artifact, job.images, job.pieces) if b is not None}
        timeout_s = VERB_S + sum(b.bytes for b in wanted.values()) / _HASH_BYTES_PER_S
        for attempt in range(3):
            answer = agent.verb("have", stdin=json.dumps(list(wanted)).encode(), timeout_s=timeout_s)
            if not isinstance(answer, list):
                raise DeviceError(f"{self.profile.name}: answered {readable(str(answer), 80)} when asked for its files")
            missing = [b for sha256, b in wanted.items() if sha256 not in answer]
            if not missing:
                return
            if attempt == 2:
                names = ", ".join(b.name for b in missing)
                raise DeviceError(
                    f"{self.profile.name}: {names} arrived damaged twice, or is not what its hash says here"
                )
            agent.again(lambda t: t.mkdirs(f"{agent.root}/blobs"))
            for blob in missing:
                what = f"sending {blob.name} ({blob.bytes / 1e6:.1f} MB)"
                task.describe(what)
                with progress.task(f"{self.profile.name}: {what}", total=blob.bytes) as bar:
                    agent.send(blobs[blob.sha256], f"{agent.root}/blobs/{blob.sha256}", furthest(bar))

    def _wait(self, job: wire.Job, result: str, task: Task, meter: HostMeter | None) -> wire.Status:
        """Until there is a result, or the agent says that there will be none. The task follows the agent's estimate."""
        status = wire.Status("running")
        began = asked_at = running_since = time.monotonic()
        asked, shown, pause_s = 0, 0.0, 0.1
        looked_at = quiet_until = 0.0
        while True:
            now = time.monotonic()
            if now >= quiet_until or now - looked_at >= _QUIET_LOOK_S:
                if self._agent.again(lambda t: t.exists(result)):
                    break
                looked_at = now
            due = began + _STATUS_AT_S[asked] if asked < len(_STATUS_AT_S) else asked_at + _STATUS_EVERY_S
            if now >= max(due, quiet_until):
                status = self._agent.ask(wire.Status, "status", job.job_id)
                asked, asked_at = asked + 1, now
                quiet_until = now + min(status.quiet_s or 0.0, job.deadline_s)
                if meter is not None and status.state in ("running", "waiting") and status.quiet_s is None:
                    meter.between()
                if status.state == "done":
                    break
                if status.state not in ("running", "waiting"):
                    return status
                waiting = status.state == "waiting"
                running_since = now if waiting else running_since
                taken = "another job, or `device setup`, has the board"
                task.describe(taken if waiting else readable(status.phase or "running", 60))
            fraction = max(shown, _fraction(status, now - asked_at))
            task.advance(fraction - shown)
            shown = fraction
            late = now - running_since > job.deadline_s + _AFTER_DEADLINE_S
            if late or now - began > job.deadline_s + _WAIT_FOR_BOARD_S:
                self._discard(job)
                raise StepFailed(
                    f"{self.profile.name}: the job did not end in the time it was given, and was cancelled"
                )
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.3, 1.0)
        task.advance(1.0 - shown)
        return wire.Status("done")

    def check_engine(self, engine: str, providers: Sequence[str] | None = None) -> None:
        """UserError when the device cannot be written to, or has not this engine with these providers (None: its profile's)."""
        hello, name, agent = self.hello(), self.profile.name, self._agent
        if not hello.writable:
            raise UserError(f"cannot write to {agent.root} there", where=name, fix="Set workdir in the device profile.")
        found = hello.engines.get(engine)
        if found is None or found.version is None:
            reason = readable((found.reason if found else None) or "not installed", 500)
            raise UserError(
                f"no usable {engine} under {agent.python} there: {reason}", where=name, fix=agent.setup_hint()
            )
        for provider in (providers or self.profile.providers) if engine == "onnxruntime" else ():
            if provider not in found.providers:
                raise UserError(
                    f"its onnxruntime has no {provider}; it has {readable(', '.join(found.providers), 300)}",
                    where=name,
                    fix="Change providers in the device profile, or install an onnxruntime that has it (docs/devices.md).",
                )

    def check_sensor(self) -> None:
        """UserError when the device has no power sensor, or one that gives no reading now."""
        profile = self.profile
        if profile.sensor == "none":
            fix = (
                "Name its sensor in the device profile (docs/sensors.md), or ask for latency or MACs instead of energy."
            )
            raise UserError("has no power sensor, and energy was asked for", where=f"device {profile.name}", fix=fix)
        found = read_once(profile, self._agent)
        if found.power_uw is None and not found.busy:
            why = readable(found.reason or "it gave no reading", 1000)
            fix = f"See `edgecompress device doctor {profile.name}`."
            raise UserError(
                f"its sensor {profile.sensor} cannot be read: {why}", where=f"device {profile.name}", fix=fix
            )


def connect(profile: DeviceProfile) -> Session:
    """A session with the device. UserError: a person has to act first (host key, login). StepFailed: it does not answer."""
    return Session(profile, open_agent(profile))


def scoped(result: wire.Result, scope: str | None) -> wire.Result:
    """The result with the scope that the device profile gives, for a sensor that cannot know its own; any other's stands."""
    if scope is None or result.power is None or result.power.trace.info.scope == scope:
        return result
    trace = result.power.trace
    if trace.info.scope != "as-wired":
        warning = f"the device profile says scope {scope}; {trace.info.name} reads that of the {trace.info.scope}, which stands"
        return dataclasses.replace(result, warnings=(*result.warnings, warning))
    trace = dataclasses.replace(trace, info=dataclasses.replace(trace.info, scope=scope))
    return dataclasses.replace(result, power=dataclasses.replace(result.power, trace=trace))


def _fraction(status: wire.Status, since_s: float) -> float:
    """How far the job is, `since_s` after it told: it goes on by the clock."""
    if status.fraction is None or status.seconds_left is None:
        return 0.0
    done = min(max(status.fraction, 0.0), 1.0)
    return min(done + (1.0 - done) * since_s / max(status.seconds_left, 1e-3), 1.0)
