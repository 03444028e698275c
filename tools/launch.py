"""Start several ranks on this machine, with mpirun or horovodrun, from whichever environment runs this.

For tests and examples. Every setting that those launchers need is here; as a program:
python tools/launch.py -n 2 [--horovodrun] script.py its arguments
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

# The launcher's own defaults would refuse more ranks than cores, and pin each rank to one core.
# The first two are for Open MPI 5, the next two for Open MPI 4; other MPIs ignore them.
PLACEMENT = {
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_MCA_hwloc_base_binding_policy": "none",
    "OMPI_MCA_mpi_yield_when_idle": "1",  # a rank that waits leaves its core to the others
}
ROOT_CONSENT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
# horovodrun's own default is spelled for Open MPI 4, which Open MPI 5 does not understand.
HOROVODRUN_BINDING = "--binding-args=--bind-to none --map-by slot"


def launch_environment() -> dict[str, str]:
    """The caller's environment, with what the launchers need (Open MPI: HOME); what the caller has set stays."""
    env = {"HOME": str(Path.home()), "TF_CPP_MIN_LOG_LEVEL": "2", **PLACEMENT}
    env.update(ROOT_CONSENT if os.geteuid() == 0 else {})
    env.update(os.environ)
    # horovodrun looks for mpirun on PATH.
    env["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), env.get("PATH", os.defpath)])
    return env


def find_program(name: str) -> str:
    """The program of this interpreter's environment, else the one on PATH."""
    found = shutil.which(name, path=launch_environment()["PATH"])
    if found is None:
        raise FileNotFoundError(f"{name} not found beside {sys.executable}, nor on PATH")
    return found


def mpirun_command(np: int, python_args: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Command and environment that run `python *python_args` as np ranks under mpirun."""
    return [find_program("mpirun"), "-n", str(np), sys.executable, *python_args], launch_environment()


def horovodrun_command(
    np: int, python_args: Sequence[str], controller: str = "mpi"
) -> tuple[list[str], dict[str, str]]:
    """The same under horovodrun; controller is "mpi" or "gloo" (which needs no MPI at all)."""
    how = ["--mpi", HOROVODRUN_BINDING] if controller == "mpi" else [f"--{controller}"]
    command = [find_program("horovodrun"), "-np", str(np), *how, sys.executable, *python_args]
    return command, launch_environment()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("-n", type=int, default=2, metavar="RANKS")
    parser.add_argument("--horovodrun", action="store_true", help="instead of mpirun")
    parser.add_argument("python_args", nargs=argparse.REMAINDER, help="script and its arguments")
    args, options = parser.parse_known_args()  # options: of Python, such as -m
    build = horovodrun_command if args.horovodrun else mpirun_command
    command, env = build(args.n, [*options, *args.python_args])
    return subprocess.run(command, env=env, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
