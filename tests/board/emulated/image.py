"""The emulated board's files, built once into a cache outside of the repository: kernel, initramfs, disk, kernel modules, keys.

    python -m tests.board.emulated.image        builds what is missing, and says what the machine lacks

Where: EDGECOMPRESS_BOARD_CACHE, default ~/.cache/edgecompress/board. Building needs root on Debian 12 (binfmt_misc, device nodes)
and Debian's archive; running what was built needs neither. Nothing of Debian is part of this repository: the driver of the
INA219 (drivers/hwmon/ina2xx.c) is compiled from the package linux-source-6.1 here, because Debian's arm64 kernel has none.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
FIXTURE = HERE / "ina219_fixture.c"

PACKAGES = {
    "qemu-system-aarch64": "qemu-system-arm",
    "qemu-img": "qemu-utils",
    "mmdebstrap": "mmdebstrap",
    "qemu-aarch64-static": "qemu-user-static",
    "arch-test": "arch-test",
    "aarch64-linux-gnu-gcc-12": "gcc-12-aarch64-linux-gnu",
    "mke2fs": "e2fsprogs",
    "dpkg-deb": "dpkg",
    "make": "make",
    "ssh": "openssh-client",
}
"""Command → Debian's package of it."""

_SUITE = "bookworm"
_INCLUDED = (
    "linux-image-arm64", "systemd-sysv", "systemd-timesyncd", "udev",
    "kmod", "iproute2", "openssh-server", "python3", "python3-venv",
    "i2c-tools", "libstdc++6",
)  # fmt: skip
_DISK = "3G"
_MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "ext4")
_MASKED = (
    "systemd-timesyncd", "apt-daily.timer", "apt-daily-upgrade.timer", "man-db.timer", "dpkg-db-backup.timer",
    "fstrim.timer", "e2scrub_all.timer", "e2scrub_reap", "getty@tty1", "systemd-random-seed", "systemd-update-utmp",
    "systemd-pstore", "rsyslog", "cron",
)  # fmt: skip
"""Units that a board for tests does not need: under emulation each costs a second."""

_CUSTOMIZE = r"""set -eu
root="$1"
echo emulated-board > "$root/etc/hostname"
printf '127.0.0.1 localhost emulated-board\n' > "$root/etc/hosts"
printf '[Match]\nName=e*\n[Network]\nDHCP=yes\n' > "$root/etc/systemd/network/lan.network"
printf '/dev/vda / ext4 rw,noatime 0 1\n' > "$root/etc/fstab"
printf 'i2c-dev\n' > "$root/etc/modules-load.d/i2c.conf"
printf 'PasswordAuthentication no\nPermitRootLogin prohibit-password\nUseDNS no\n' > "$root/etc/ssh/sshd_config.d/board.conf"
chroot "$root" useradd -m -s /bin/bash -G i2c board
chroot "$root" useradd -m -s /bin/bash stranger
for home in root home/board home/stranger; do
    mkdir -p -m 700 "$root/$home/.ssh"
    cp "$KEY" "$root/$home/.ssh/authorized_keys"
done
chroot "$root" chown -R board:board /home/board
chroot "$root" chown -R stranger:stranger /home/stranger
cp "$HOST_KEY" "$root/etc/ssh/ssh_host_ed25519_key"
cp "$HOST_KEY.pub" "$root/etc/ssh/ssh_host_ed25519_key.pub"
rm -f "$root"/etc/ssh/ssh_host_rsa_key* "$root"/etc/ssh/ssh_host_ecdsa_key*
chroot "$root" systemctl enable systemd-networkd ssh
chroot "$root" systemctl mask $MASKED
rm -rf "$root"/usr/share/doc/* "$root"/usr/share/man/* "$root"/usr/share/locale/*
"""


class CannotRun(Exception):
    """This machine cannot build or run the board: what is missing, and what to do."""


def cache() -> Path:
    named = os.environ.get("EDGECOMPRESS_BOARD_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "edgecompress" / "board"


def image_dir() -> Path:
    """Where the image of this recipe is, or will be."""
    recipe = repr((_SUITE, _INCLUDED, _DISK, _MODULES, _MASKED, _CUSTOMIZE))
    return cache() / hashlib.sha256(recipe.encode()).hexdigest()[:12]


def missing_commands() -> list[str]:
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    return [c for c in PACKAGES if shutil.which(c, path=path) is None]


def why_not_here() -> str | None:
    """Why the board cannot be started now; None when it can."""
    missing = {"qemu-system-aarch64", "qemu-img", "ssh"} & set(missing_commands())
    if missing:
        return f"needs {', '.join(sorted(missing))}: apt-get install {' '.join(sorted(PACKAGES[c] for c in missing))}"
    if not (image_dir() / "ready").exists():
        return f"no image of the emulated board in {cache()}: `make board` builds it"
    return None


def build() -> Path:
    """Everything that is missing; the folder. CannotRun when the machine lacks something. 7 to 10 minutes the first time."""
    folder = image_dir()
    if not (folder / "ready").exists():
        _check()
        folder.mkdir(parents=True, exist_ok=True)
        _keys(folder)
        if not (folder / "root.img").exists():
            _disk(folder)
        _driver(folder)
        (folder / "ready").touch()
    if not _fixture(folder).exists():
        _check()
        _compile(folder, FIXTURE, _fixture(folder))
    return folder


def _fixture(folder: Path) -> Path:
    return folder / f"ina219_fixture-{hashlib.sha256(FIXTURE.read_bytes()).hexdigest()[:12]}.ko"


def modules(folder: Path) -> tuple[Path, Path]:
    """(the INA219, the kernel's driver for it), compiled for the image's kernel."""
    return _fixture(folder), folder / "ina2xx.ko"


def _check() -> None:
    missing = missing_commands()
    if missing:
        packages = " ".join(sorted({PACKAGES[c] for c in missing}))
        raise CannotRun(
            f"it needs {', '.join(missing)}. On Debian 12: apt-get install --no-install-recommends {packages}"
        )
    if os.geteuid() != 0:
        raise CannotRun("building the emulated board needs root (a foreign architecture's tree is made and entered)")
    release = Path("/etc/os-release").read_text()
    if f"VERSION_CODENAME={_SUITE}" not in release:
        raise CannotRun(
            f"the emulated board is built on Debian {_SUITE} (its kernel's tools are taken from its archive)"
        )
    handlers = Path("/proc/sys/fs/binfmt_misc")
    if not (handlers / "register").exists():
        _run("mount", "-t", "binfmt_misc", "binfmt_misc", str(handlers))
    if not (handlers / "qemu-aarch64").exists():
        (handlers / "register").write_text(Path("/usr/lib/binfmt.d/qemu-aarch64.conf").read_text().strip())


def _keys(folder: Path) -> None:
    for name in ("key", "host_key"):
        if not (folder / name).exists():
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "emulated-board", "-f", str(folder / name))


def _disk(folder: Path) -> None:
    """A tree by mmdebstrap, its kernel beside it, and the tree as an ext4 file system."""
    tree = folder / "tree"
    if tree.exists():
        shutil.rmtree(tree)
    modules_list = " ".join(_MODULES)
    early = (
        'mkdir -p "$1/etc/initramfs-tools/conf.d" "$1/usr/share/initramfs-tools/modules.d";'
        'echo MODULES=list > "$1/etc/initramfs-tools/conf.d/list";'
        f'printf "%s\\n" {modules_list} > "$1/usr/share/initramfs-tools/modules.d/board"'
    )
    hook = folder / "customize.sh"
    hook.write_text(_CUSTOMIZE)
    environment = os.environ | {
        "KEY": str(folder / "key.pub"), "HOST_KEY": str(folder / "host_key"), "MASKED": " ".join(_MASKED)
    }  # fmt: skip
    _run(
        "mmdebstrap", "--mode=root", "--arch=arm64", "--variant=minbase", f"--include={','.join(_INCLUDED)}",
        '--aptopt=APT::Install-Recommends "false"', f"--essential-hook={early}",
        f'--customize-hook=sh {hook} "$1"', _SUITE, str(tree), _mirror(), environment=environment,
    )  # fmt: skip
    for name in ("vmlinuz", "initrd.img"):
        shutil.copy(next((tree / "boot").glob(f"{name}-*")), folder / name)
    (folder / "kernel").write_text(next((tree / "boot").glob("vmlinuz-*")).name.removeprefix("vmlinuz-"))
    half = folder / "root.img.half"
    _run("mke2fs", "-q", "-t", "ext4", "-L", "root", "-d", str(tree), str(half), _DISK)
    half.rename(folder / "root.img")  # the file says that this stage is done
    shutil.rmtree(tree)


def _mirror() -> str:
    """Where this machine's own apt gets the suite from."""
    said = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)",
         "Identifier: Packages", f"Codename: {_SUITE}", "Component: main"],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    if not said:
        raise CannotRun(f"apt has no source for Debian {_SUITE} here: add one to its sources and run apt-get update")
    return said[0].rstrip("/")


def _driver(folder: Path) -> None:
    """The kernel's headers for the image's kernel, and ina2xx.ko of its sources."""
    kernel = (folder / "kernel").read_text()
    common = re.sub(r"-(cloud-)?arm64$", "-common", kernel)
    work = folder / "build"
    work.mkdir(exist_ok=True)
    debs = work / "debs"
    debs.mkdir(exist_ok=True)
    state = work / "apt"  # an apt of its own, for arm64: the machine's stays as it is
    for part in ("lists/partial", "cache/archives/partial", "etc/apt.conf.d", "etc/preferences.d"):
        (state / part).mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    options = ["-o", "APT::Architecture=arm64", "-o", "APT::Architectures=arm64"]
    options += [
        "-o",
        f"Dir::State={state}",
        "-o",
        f"Dir::State::lists={state}/lists",
        "-o",
        f"Dir::State::status={state}/status",
    ]
    options += ["-o", f"Dir::Cache={state}/cache", "-o", "APT::Sandbox::User=root"]
    _run("apt-get", *options, "-qq", "update")
    _run("apt-get", *options, "-qq", "download", f"linux-headers-{kernel}", f"linux-headers-{common}", cwd=debs)
    _run(
        "apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", "linux-kbuild-6.1", "linux-source-6.1", cwd=debs
    )
    tree = work / "tree"
    for deb in debs.glob("*.deb"):
        if not deb.name.startswith("linux-source"):
            _run("dpkg-deb", "-x", str(deb), str(tree))
    headers = tree / "usr" / "src" / f"linux-headers-{kernel}"
    # the packages name each other by absolute paths; here they are under `tree`
    makefile = headers / "Makefile"
    makefile.write_text(makefile.read_text().replace("/usr/src/", f"{tree}/usr/src/"))
    for link in ("scripts", "tools"):
        for place in (headers, tree / "usr" / "src" / f"linux-headers-{common}"):
            if (place / link).is_symlink() or not (place / link).exists():
                (place / link).unlink(missing_ok=True)
                (place / link).symlink_to(tree / "usr" / "lib" / "linux-kbuild-6.1" / link)
    _run("dpkg-deb", "-x", str(next(debs.glob("linux-source-6.1_*.deb"))), str(work / "source"))
    archive = work / "source" / "usr" / "src" / "linux-source-6.1.tar.xz"
    _run("tar", "-C", str(work), "-xf", str(archive), "linux-source-6.1/drivers/hwmon/ina2xx.c")
    _compile(folder, work / "linux-source-6.1" / "drivers" / "hwmon" / "ina2xx.c", folder / "ina2xx.ko")
    shutil.rmtree(work / "source")
    shutil.rmtree(debs)


def _compile(folder: Path, source: Path, target: Path) -> None:
    """One module out of the kernel's tree."""
    work = folder / "build" / target.stem
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    shutil.copy(source, work)
    (work / "Makefile").write_text(f"obj-m := {source.stem}.o\n")
    headers = folder / "build" / "tree" / "usr" / "src" / f"linux-headers-{(folder / 'kernel').read_text()}"
    _run(
        "make", "-C", str(headers), f"M={work}", "ARCH=arm64", "CROSS_COMPILE=aarch64-linux-gnu-",
        "CC=aarch64-linux-gnu-gcc-12", "modules",
    )  # fmt: skip
    shutil.copy(work / f"{source.stem}.ko", target)


def _run(*command: str, cwd: Path | None = None, environment: dict[str, str] | None = None) -> None:
    print("+", *command, flush=True)
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    done = subprocess.run(
        ["nice", "-n", "5", *command], cwd=cwd, env=(environment or dict(os.environ)) | {"PATH": path}
    )
    if done.returncode:
        raise CannotRun(
            f"building the emulated board: {command[0]} ended with status {done.returncode} (its words are above)"
        )


if __name__ == "__main__":
    try:
        print(build())
    except CannotRun as error:
        sys.exit(str(error))
