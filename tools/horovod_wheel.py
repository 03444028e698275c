"""Build Horovod from its sources, once for each set of versions; the wheel is kept in the user's cache."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

from console import ROOT, fail, say, step
from horovod_edits import EDITS, apply_edits

REQUIREMENT = ROOT / "requirements" / "horovod.txt"

# What Horovod's own build reads. The run path makes its libraries find the MPI library of whichever
# virtual environment they are installed in: lib/, four folders above site-packages/horovod/torch.
BUILD_SETTINGS = {
    "HOROVOD_WITH_MPI": "1",
    "HOROVOD_WITH_GLOO": "1",
    "HOROVOD_WITH_PYTORCH": "1",
    "HOROVOD_WITH_TENSORFLOW": "1",
    "HOROVOD_WITHOUT_MXNET": "1",
    "LDFLAGS": r"-Wl,-rpath,\$ORIGIN/../../../..",
}
FRAMEWORK_VERSIONS = (
    "from importlib.metadata import version as v; "
    "print(*(p + '==' + v(p) for p in ('torch', 'tensorflow-cpu', 'openmpi')))"
)


def output_of(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def cache_key(python: Path, compiler: str) -> str:
    """Everything the wheel's content depends on."""
    parts = (
        REQUIREMENT.read_text(encoding="utf-8"),
        repr(EDITS),
        repr(BUILD_SETTINGS),
        output_of(str(python), "-c", FRAMEWORK_VERSIONS),
        platform.python_version(),
        platform.machine(),
        output_of(compiler, "--version").splitlines()[0],
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "hvd_qsgd"


def fetch_sources(python: Path, folder: Path, env: Mapping[str, str]) -> Path:
    """Download the source archive, checked against its hash; unpack and edit it."""
    step(
        "fetching Horovod's sources (3 MB)",
        [str(python), "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--no-build-isolation"]
        + ["--require-hashes", "-r", str(REQUIREMENT), "-d", str(folder)],
        env=env,
    )
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    sources = folder / archive.name[: -len(".tar.gz")]
    try:
        apply_edits(sources)
    except ValueError as error:
        fail(str(error))
    for edit in EDITS:
        say(f"  edited {edit.path}: {edit.why}")
    return sources


def jobs() -> int:
    """How many compilers to run: one a core, and no more than one for each 2 GiB of memory."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(len(os.sched_getaffinity(0)), memory // 2**31))


def build(python: Path, target: Path, env: Mapping[str, str]) -> None:
    """Build the wheel; it appears in target whole or not at all."""
    work = ROOT / "build" / "horovod"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    sources = fetch_sources(python, work, env)
    wheel = [str(python), "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-v", "-w", str(work)]
    step(
        f"building Horovod with {jobs()} compilers at a time ({8 // jobs()}-{16 // jobs()} minutes)",
        [*wheel, str(sources)],
        env={**env, **BUILD_SETTINGS, "MAKEFLAGS": f"-j{jobs()}"},
    )
    (built,) = work.glob("*.whl")
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target) as temporary:
        copy = Path(shutil.copy(built, temporary))
        copy.replace(target / built.name)
    shutil.rmtree(work)


def horovod_wheel(python: Path, env: Mapping[str, str], compiler: str) -> Path:
    """The path of a wheel that fits this environment, built first if the cache has none."""
    folder = cache_folder() / cache_key(python, compiler)
    if not list(folder.glob("*.whl")):
        build(python, folder, env)
    else:
        say("Horovod was built before, for the same versions: using that wheel")
    return next(folder.glob("*.whl"))
