"""Containers without a container engine: buildah with chroot isolation on a debootstrap root, for test_deploy_container.py.

Every buildah runs in a mount and process namespace of its own that dies with the test: a test that is killed leaves
neither a mount nor a process. Storage lies in .cache/deploy and is emptied before and after.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from pip_settings import pip_settings

ROOT = Path(__file__).parent.parent
CACHE = ROOT / ".cache" / "deploy"
BASE = "localhost/klaxon-test-base"
FREE_BYTES = 8 * 2**30
BUILD_SECONDS, STEP_SECONDS = 1800, 300
NAMESPACES = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc"]


def why_not() -> str:
    """Why no container can be built here; "" when one can."""
    for program, package in (("buildah", "buildah"), ("debootstrap", "debootstrap"), ("unshare", "util-linux"), ("setpriv", "util-linux")):
        if shutil.which(program) is None:
            return f"{program} is not installed (Debian: apt-get install {package}, or `make programs`)"
    if os.geteuid() != 0:
        return "chroot isolation needs root"
    if subprocess.run([*NAMESPACES, "true"], capture_output=True, check=False).returncode:
        return "this machine lets root make no namespaces"
    CACHE.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(CACHE).free) < FREE_BYTES:
        return f"{free / 2**30:.1f} GiB are free under .cache/deploy, and building needs up to {FREE_BYTES / 2**30:.0f}"
    return ""


class Builder:
    """buildah with a storage of its own. One at a time: the others wait for the lock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.storage, self.scratch = folder / "storage", folder / "tmp"
        self._options = ["--root", str(self.storage / "root"), "--runroot", str(self.storage / "run"), "--storage-driver", "overlay"]

    def command(self, *arguments: str) -> list[str]:
        """The argv of a buildah in namespaces of its own."""
        return [*NAMESPACES, "buildah", *self._options, *arguments]

    def __call__(self, *arguments: str, check: bool = True, timeout: float = STEP_SECONDS) -> subprocess.CompletedProcess[str]:
        """Run one; a failure shows what it said."""
        done = subprocess.run(self.command(*arguments), capture_output=True, text=True, timeout=timeout, env=self.environment(), check=False)
        assert not check or done.returncode == 0, f"buildah {shlex.join(arguments)}: {done.stdout[-1500:]}{done.stderr[-3000:]}"
        return done

    def environment(self) -> dict[str, str]:
        """Blobs on their way into the storage lie beside it, not in /var/tmp."""
        return {**os.environ, "TMPDIR": str(self.scratch)}

    def image(self, name: str) -> dict:
        """What the image says of itself: config of the Docker format."""
        return json.loads(self("inspect", "--type", "image", name).stdout)["Docker"]["config"]

    @contextlib.contextmanager
    def container(self, image: str) -> Iterator[str]:
        """A working container of an image, removed afterwards."""
        name = self("from", image).stdout.strip()
        try:
            yield name
        finally:
            self("rm", name, check=False)

    def sealed(self, container: str, *argv: str, volumes: dict[Path, str]) -> list[str]:
        """The argv that runs `argv` in it as Kubernetes would: root read-only, no capabilities, no new privileges; /run and /tmp are tmpfs.

        buildah's run has no switch for a read-only root, so the mounted root is made read-only first.
        """
        buildah = shlex.join(["buildah", *self._options])
        mounts = [word for where, inside in volumes.items() for word in ("--volume", f"{where}:{inside}")]
        run = shlex.join(["run", "--isolation", "chroot", "--cap-drop", "all", "--mount", "type=tmpfs,destination=/tmp", *mounts, container, "--", *argv])
        script = (f"root=$({buildah} mount {container}) && trap 'umount $root/run; {buildah} umount {container} >/dev/null' EXIT\n"
                  f"mount -o remount,ro $root && mount -t tmpfs tmpfs $root/run && setpriv --no-new-privs {buildah} {run}")
        return [*NAMESPACES, "bash", "-c", script]


@contextlib.contextmanager
def builder() -> Iterator[Builder]:
    """A builder with empty storage that knows the image BASE: Debian with Python. Skips where none can be had."""
    if reason := why_not():
        pytest.skip(reason)
    with open(CACHE / "lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = Builder(CACHE)
        _empty(made)
        made.scratch.mkdir(exist_ok=True)
        try:
            root = debian_root(made)
            with made.container("scratch") as container:
                made("add", "--quiet", container, str(root), "/")
                made("commit", "--quiet", container, BASE)
            yield made
        finally:
            made("rmi", "--all", "--force", check=False)
            _empty(made)


def _empty(made: Builder) -> None:
    for folder in (made.storage, made.scratch):
        shutil.rmtree(folder, ignore_errors=True)


def debian_root(made: Builder) -> Path:
    """A Debian root with Python as a tar file, made once and kept."""
    kept = CACHE / "debian-python.tar.gz"
    if kept.exists():
        return kept
    folder, fresh = made.scratch / "debian", made.scratch / "fresh.tar.gz"
    done = subprocess.run([*NAMESPACES, "debootstrap", "--variant=minbase", "--include=python3,python3-venv", "bookworm", str(folder)],
                          capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
    if done.returncode:
        pytest.skip(f"debootstrap finds no Debian mirror: {(done.stdout + done.stderr).strip().splitlines()[-1:]}")
    unread = [f"--exclude=./{path}" for path in ("var/cache/apt/*", "var/lib/apt/lists/*", "usr/share/doc/*", "usr/share/locale/*", "usr/share/man/*", "dev/*")]
    subprocess.run(["tar", "-C", str(folder), *unread, "-czf", str(fresh), "."], check=True)
    shutil.rmtree(folder)
    fresh.rename(kept)
    return kept


def pip_arguments(folder: Path) -> list[str]:
    """How a build gets at the package registry this machine's pip uses: its settings as secrets, its local folders as volumes."""
    settings = pip_settings()
    cert = settings.pop("cert", None)
    conf = folder / "pip.conf"
    conf.write_text("[global]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items()), encoding="utf-8")
    words = [word for value in settings.values() for word in value.split()]
    indexes = {str(Path(word.removeprefix("file://")).parent) for word in words if word.startswith("file://")}  # an index's files lie beside it
    local = sorted(path for path in indexes | {word for word in words if word.startswith("/")} if Path(path).is_dir())
    return ["--secret", f"id=pip,src={conf}", *(["--secret", f"id=ca,src={cert}"] if cert else []),
            *(argument for path in local for argument in ("--volume", f"{path}:{path}:ro"))]


def build(made: Builder, folder: Path, target: str, *arguments: str) -> None:
    """Build one target of the Containerfile from BASE, under its own name."""
    made("build", "--isolation", "chroot", "--format", "docker", "--target", target, "--tag", f"klaxon-{target}", "--build-arg", f"BASE_IMAGE={BASE}",
         *pip_arguments(folder), *arguments, "--file", str(ROOT / "deploy/container/Containerfile"), str(ROOT), timeout=BUILD_SECONDS)
