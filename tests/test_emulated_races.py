"""The emulated GPU under ThreadSanitizer: races between threads, and between blocks, are seen, and nothing else is."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

EMULATION = Path(__file__).parent / "cuda_emulation"
RACES = ["nothing", "shuffle", "blocks"]
ORDERED = ["warp barrier", "block barrier", "launches", "atomics"]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    asked = subprocess.run(["g++", "-print-file-name=libtsan.so"], capture_output=True, text=True, check=True)
    if not Path(asked.stdout.strip()).is_absolute():
        pytest.skip("g++ has no ThreadSanitizer here")
    folder = tmp_path_factory.mktemp("races")
    emulation, program = folder / "emulation.o", folder / "races"
    compiler = ["g++", "-std=c++17", "-O1", "-g"]
    subprocess.run([*compiler, "-c", str(EMULATION / "emulation.cpp"), "-o", str(emulation)], check=True)
    command = [*compiler, "-fsanitize=thread", str(EMULATION / "races.cpp"), str(emulation), "-o", str(program)]
    subprocess.run(command, check=True)
    return program


@pytest.mark.parametrize(("kernel", "race"), [*((k, True) for k in RACES), *((k, False) for k in ORDERED)])
def test_races(program: Path, kernel: str, race: bool) -> None:
    ended = subprocess.run([str(program), kernel], capture_output=True, text=True, check=False)
    assert "over" in ended.stdout
    assert ("WARNING: ThreadSanitizer: data race" in ended.stderr) == race, ended.stderr
