"""The verbs about a study: run, report."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from edgecompress.cli.bars import progress
from edgecompress.errors import UserError


def run(arguments: argparse.Namespace) -> int:
    from edgecompress import pipeline
    from edgecompress.pools import Device, read_device_or_pool
    from edgecompress.report import collect, terminal, write_all
    from edgecompress.rundir import RunDir
    from edgecompress.studyfile import read_study

    # The study's own folder first: a model of one's own, `package.module:callable`, lies beside the study.
    sys.path.insert(0, str(arguments.study.resolve().parent))
    study = read_study(arguments.study, arguments.settings)
    base, names = (Path(), arguments.device) if arguments.device else (arguments.study.resolve().parent, study.devices)
    devices: dict[str, Device] = {}
    for name in names:
        profile = read_device_or_pool(name, base=base, where=str(arguments.study))
        if profile.name in devices:
            raise UserError(
                f"two devices are named {profile.name!r}",
                where=str(arguments.study),
                fix="Give each profile its own name.",
            )
        devices[profile.name] = profile
    run_dir = RunDir(arguments.out or Path("runs") / study.name)
    command = shlex.join(["edgecompress", "run", str(arguments.study), *_options(arguments)])
    with progress() as bars:
        outcome = pipeline.run(
            study, devices, run_dir, command=command, progress=bars, skip_absent=arguments.skip_absent
        )
        report = collect(run_dir)
        files = write_all(report, run_dir)
    print(terminal.table(report))
    for file in files:
        print(file)
    if outcome.failed:
        count = "one variant" if len(outcome.failed) == 1 else f"{len(outcome.failed)} variants"
        print(f"{count} failed: the reasons stand in the table and the report.", file=sys.stderr)
    return 1 if outcome.failed else 0


def _options(arguments: argparse.Namespace) -> list[str]:
    options = [] if arguments.out is None else ["--out", str(arguments.out)]
    for device in arguments.device or []:
        options += ["--device", device]
    options += ["--skip-absent"] if arguments.skip_absent else []
    for setting in arguments.settings:
        options += ["--set", setting]
    return options


def report(arguments: argparse.Namespace) -> int:
    from edgecompress.report import collect, render
    from edgecompress.rundir import RunDir, write_atomically

    text = render(collect(RunDir(arguments.run_dir)), arguments.format)
    out = arguments.out or (arguments.run_dir / "report.html" if arguments.format == "html" else None)
    if out is None:
        sys.stdout.write(text)
    else:
        write_atomically(out, text)
        print(out)
    return 0
