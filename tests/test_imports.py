"""What is imported by what: nobody pays for, or needs, a framework that is not used."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "tensorflow", "keras", "horovod", "mpi4py")
FREE_OF_FRAMEWORKS = sorted(
    {
        "__main__", "arrays", "checks", "compare", "compressor", "config", "controller", "describe", "errors",
        "frames", "methods", "mpi", "native", "native_cuda", "plot", "presets", "progress", "residuals", "schedule",
        "selection", "stats", "steps", "timing", "transport", "transport.horovod", "transport.mpi", "wire",
    }
)  # fmt: skip


def imported_by(code: str) -> set[str]:
    """The modules that a fresh interpreter has after `code`; its current directory is not the repository."""
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}\nimport json; print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd="/", capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_package_imports_no_framework() -> None:
    modules = imported_by("import hvd_qsgd")
    assert not modules.intersection(HEAVY)
    assert "ml_dtypes" not in modules
    assert {"numpy", "hvd_qsgd.arrays"} <= modules


def test_no_module_but_the_frontends_imports_a_framework() -> None:
    names = "\n".join(f"import hvd_qsgd.{name}" for name in FREE_OF_FRAMEWORKS)
    assert not imported_by(names).intersection(HEAVY)


def test_every_module_is_accounted_for() -> None:
    package = ROOT / "hvd_qsgd"
    found = {".".join(path.relative_to(package).with_suffix("").parts) for path in package.rglob("*.py")}
    found = {name.removesuffix(".__init__") for name in found} - {"__init__"}
    torch = {"torch", "qsvrg", *(name for name in found if name.startswith("torch_"))}
    parts = ("names", "ops", "residuals", "schedule", "settings", "steps", "tensors")
    tensorflow = {"tensorflow", *(f"tensorflow_{part}" for part in parts), "keras"}
    assert found - torch - tensorflow == set(FREE_OF_FRAMEWORKS)


def test_using_the_package_imports_no_framework() -> None:
    modules = imported_by("import hvd_qsgd\nhvd_qsgd.decode(hvd_qsgd.encode([1.0, 2.0]))")
    assert not modules.intersection(HEAVY)


def test_importing_does_not_load_the_library() -> None:
    """`--help` of a program works without it; so does the message that it is missing."""
    code = "import os; os.environ['HVD_QSGD_LIBRARY'] = '/nowhere.so'\nimport hvd_qsgd\n"
    code += "try: hvd_qsgd.encode([1.0])\nexcept hvd_qsgd.QSGDError as error: assert 'make kernels' in str(error)\n"
    code += "else: raise SystemExit('loaded')"
    imported_by(code)


def without_horovod(frontend: str, words: str) -> str:
    """Code that imports the frontend in vain, is told so, and then has Horovod again."""
    code = f"sys.modules['horovod'] = None\ntry: import {frontend}\nexcept ImportError as error: "
    code += f"assert {words!r} in str(error)\nelse: raise SystemExit('imported')\ndel sys.modules['horovod']\n"
    return code


@pytest.mark.torch
def test_the_torch_frontend_imports_no_other_framework_and_says_what_is_missing() -> None:
    pytest.importorskip("horovod.torch")
    code = without_horovod("hvd_qsgd.torch", "Horovod built for PyTorch")
    modules = imported_by(code + "import hvd_qsgd.torch")
    assert {"torch", "horovod.torch"} <= modules
    assert not modules.intersection({"tensorflow", "keras", "mpi4py", "horovod.tensorflow"})


@pytest.mark.tensorflow
def test_the_tensorflow_frontend_imports_no_other_framework_and_says_what_is_missing() -> None:
    """Nor does it need its ops before it is used; then it says how to get them."""
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("there is no TensorFlow")
    code = without_horovod("hvd_qsgd.tensorflow", "Horovod built for TensorFlow")
    code += "import pathlib, hvd_qsgd.tensorflow, hvd_qsgd.tensorflow_ops as ops\n"
    code += "ops.path = lambda: pathlib.Path('/nowhere.so')\n"
    code += "try: hvd_qsgd.tensorflow.QSGD()\n"
    code += "except hvd_qsgd.QSGDError as error: assert 'ops for TensorFlow 2.' in str(error), error\n"
    code += "else: raise SystemExit('loaded')"
    modules = imported_by(code)
    assert {"tensorflow", "horovod.tensorflow"} <= modules
    assert not modules.intersection({"torch", "mpi4py", "horovod.torch"})


@pytest.mark.tensorflow
def test_the_keras_frontend_imports_no_other_framework_and_says_which_keras_it_is_for() -> None:
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("there is no TensorFlow")
    code = "import keras, types\n"
    code += "def refused(fake, words):\n"
    code += "    sys.modules['keras'] = fake\n"
    code += "    try: import hvd_qsgd.keras\n"
    code += "    except ImportError as error: assert words in str(error), error\n"
    code += "    else: raise SystemExit('imported')\n"
    code += "backend = types.SimpleNamespace(backend=lambda: 'jax')\n"
    code += "refused(types.SimpleNamespace(__version__='3.1.0', backend=backend), 'set KERAS_BACKEND=tensorflow')\n"
    code += "refused(types.SimpleNamespace(__version__='2.15.0'), 'use horovod.tensorflow.keras')\n"
    code += "assert 'horovod' not in sys.modules\nsys.modules['keras'] = keras\nimport hvd_qsgd.keras"
    modules = imported_by(code)
    assert {"keras", "horovod.tensorflow"} <= modules
    assert not modules.intersection({"torch", "mpi4py", "horovod.torch", "tf_keras"})


def test_mpi_says_what_is_missing() -> None:
    code = "sys.modules['mpi4py'] = None\nimport hvd_qsgd, hvd_qsgd.mpi\n"
    code += "try: hvd_qsgd.mpi.allreduce([1.0])\nexcept hvd_qsgd.QSGDError as error: assert 'mpi4py' in str(error)\n"
    code += "else: raise SystemExit('reduced')"
    imported_by(code)
