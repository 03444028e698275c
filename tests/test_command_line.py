"""`python -m hvd_qsgd`: what it tells of frames and gradients in files, and of files that hold neither."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import reference as ref

import hvd_qsgd
from hvd_qsgd import __main__ as command_line
from hvd_qsgd import compare, describe, wire


def run(monkeypatch, capsys, *arguments):
    """Its standard output."""
    monkeypatch.setattr(sys, "argv", ["hvd_qsgd", *map(str, arguments)])
    command_line.main()
    return capsys.readouterr().out


def refused(monkeypatch, *arguments):
    """The sentence it ends with."""
    monkeypatch.setattr(sys, "argv", ["hvd_qsgd", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        command_line.main()
    assert isinstance(end.value.code, str)
    assert "\n" not in end.value.code
    return end.value.code


def write(path, content):
    path.write_bytes(content)
    return path


def gaussian(n=5000):
    return np.random.default_rng(3).standard_normal(n).astype(np.float32)


def saved(path, array):
    np.save(path, array)
    return path


def test_inspect_shows_every_field(tmp_path, monkeypatch, capsys):
    values = gaussian()
    values[:512] = 0
    values[600] = np.nan
    frame = hvd_qsgd.encode(values, levels=5, seed=71, rank=72, tensor=73, step=74, norm="l2")
    file = write(tmp_path / "frame", frame)
    heading, *lines = (line.split(maxsplit=2) for line in run(monkeypatch, capsys, "inspect", file).splitlines())
    assert heading == ["field", "value", "meaning"]
    assert [line[0] for line in lines] == list(wire.Header.__dataclass_fields__)
    assert all(len(line) == 3 for line in lines), "every field has a meaning"
    value = {name: (text, meaning) for name, text, meaning in lines}
    header = ref.parse(frame)
    for name in ("levels", "count", "bucket_size", "seed", "rank", "tensor", "step", "coded_bytes", "frame_bytes"):
        assert value[name][0] == str(getattr(header, name)), name
    assert value["norm"][0] == "l2"
    assert value["squared_norm"] == ("-", "not in this frame")
    assert "from -5 to 5" in value["levels"][1]
    assert "10 scales" in value["bucket_size"][1]
    assert "1 of them 0" in value["bucket_size"][1]
    assert "1 NaN" in value["bucket_size"][1]
    assert f"{8 * len(frame) / 5000:.3f} bits" in value["frame_bytes"][1]


def test_inspect_as_json(tmp_path, monkeypatch, capsys):
    frame = hvd_qsgd.encode(gaussian(), squared_norm=True)
    told = json.loads(run(monkeypatch, capsys, "inspect", "--json", write(tmp_path / "frame", frame)))
    assert told["squared_norm"] == hvd_qsgd.inspect(frame).squared_norm
    assert told["bits_per_coordinate"] == 8 * len(frame) / 5000
    scales = ref.scales_in(frame)
    assert (told["scales"], told["largest_scale"]) == (scales.size, scales.max())
    assert told["smallest_scale"] == scales.min()
    assert told["payload_bytes"] == ref.payload_bytes(1, 7, 5000)


def test_inspect_an_empty_tensor(tmp_path, monkeypatch, capsys):
    assert "count" in run(monkeypatch, capsys, "inspect", write(tmp_path / "frame", hvd_qsgd.encode([])))


def test_inspect_an_error_frame(tmp_path, monkeypatch, capsys):
    frame = ref.error_frame("the GPU fell off", count=3, dtype="float16", rank=1, tensor=2, step=4)
    file = write(tmp_path / "frame", frame)
    assert "the GPU fell off" in run(monkeypatch, capsys, "inspect", file)
    assert json.loads(run(monkeypatch, capsys, "inspect", "--json", file))["message"] == "the GPU fell off"


def test_every_codec_and_norm_has_a_meaning():
    assert set(describe.CODECS) >= set(wire.CODEC_NAMES.values())
    assert set(describe.NORMS) >= set(wire.NORM_NAMES.values())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda frame: b"", "is cut short"),
        (lambda frame: frame[:-16], "is cut short"),
        (lambda frame: b"Q" + frame[:-1], "does not begin with"),
        (lambda frame: frame[:-20] + b"\1" + frame[-19:], "checksum"),
        (lambda frame: frame + frame, r"has \d+ bytes, and \d+ more follow"),
    ],
)
def test_inspect_what_is_no_frame(tmp_path, monkeypatch, change, reason):
    file = write(tmp_path / "frame", change(hvd_qsgd.encode(gaussian())))
    sentence = refused(monkeypatch, "inspect", file)
    assert sentence.startswith(f"hvd_qsgd: {file}: ")
    assert re.search(reason, sentence), sentence


def test_a_file_that_is_not_there(tmp_path, monkeypatch):
    for command in ("inspect", "codecs"):
        assert (
            refused(monkeypatch, command, tmp_path / "no") == f"hvd_qsgd: {tmp_path / 'no'}: No such file or directory"
        )
        assert refused(monkeypatch, command, tmp_path) == f"hvd_qsgd: {tmp_path}: Is a directory"


def test_codecs_says_what_frames_are(tmp_path, monkeypatch, capsys):
    """Against the reference's codes, which are the same in every codec."""
    values = gaussian(20_000).reshape(100, 200)
    flat = values.ravel()
    lines = run(monkeypatch, capsys, "codecs", "--json", saved(tmp_path / "g.npy", values)).splitlines()
    results = [json.loads(line) for line in lines]
    assert {result["codec"] for result in results} == set(wire.CODECS)
    assert [result["levels"] for result in results if result["codec"] == "packed"] == [1, 3, 7, 127]
    for result in results:
        if result["codec"] == "onebit":  # whose codes are signs, see below
            continue
        setting = {name: result[name] for name in ("codec", "levels", "bucket_size", "norm")}
        assert result["bits"] == 8 * len(hvd_qsgd.encode(values, **setting)) / values.size
        d = result["bucket_size"] or values.size
        scales = ref.scales_of(flat, d, result["norm"])
        codes = ref.quantize(flat, scales, d, result["levels"], ref.random_bits(flat.size, 0, 0, 0, 0))
        _, counts = np.unique(codes, return_counts=True)
        p = counts / values.size
        assert result["entropy"] == pytest.approx(-math.fsum(p * np.log2(p)))
        error = codes * np.repeat(scales.astype(float) / result["levels"], d)[: flat.size] - flat
        assert result["variance"] == pytest.approx((error**2).sum() / (flat.astype(float) ** 2).sum(), rel=1e-5)
        assert 0 < result["payload_bits"] < result["bits"]
        assert result["encode_gbps"] > 0
        assert result["decode_gbps"] > 0


def test_codecs_of_onebit(tmp_path, monkeypatch, capsys):
    values = gaussian(20_000)
    lines = run(monkeypatch, capsys, "codecs", "--json", saved(tmp_path / "g.npy", values)).splitlines()
    (result,) = [result for result in map(json.loads, lines) if result["codec"] == "onebit"]
    frame = hvd_qsgd.encode(values, codec="onebit")
    p = (values < 0).mean()
    assert result["entropy"] == pytest.approx(-p * np.log2(p) - (1 - p) * np.log2(1 - p))
    assert result["bits"] == 8 * len(frame) / values.size
    assert result["payload_bits"] == 8 * 64 * 40 / values.size
    assert result["variance"] == pytest.approx(1 - 2 / np.pi, rel=0.02)  # of Gaussian values


def test_codecs_as_a_table(tmp_path, monkeypatch, capsys):
    file = saved(tmp_path / "g.npy", gaussian().reshape(50, 100).astype(np.float64))
    heading, units, *rows, last = (line.split() for line in run(monkeypatch, capsys, "codecs", file).splitlines())
    assert tuple(heading) == command_line.CODECS_HEADING
    assert units == ["bits", "bits", "bits", "GB/s", "GB/s"]
    assert {len(row) for row in rows} == {len(heading)}
    assert rows[0][:5] == ["packed", "1", "512", "max", "2.048"]
    assert last[:2] == ["5000", "coordinates;"]


def test_a_gradient_of_zeros(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    file, picture = saved(tmp_path / "g.npy", np.zeros(600, np.float16)), tmp_path / "out.png"
    for line in run(monkeypatch, capsys, "codecs", "--json", file, "--plot", picture).splitlines():
        result = json.loads(line)
        assert (result["entropy"], result["variance"]) == (0, 0)
    assert picture.read_bytes().startswith(b"\x89PNG\r\n")


def test_a_plot_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    sentence = refused(monkeypatch, "codecs", saved(tmp_path / "g.npy", gaussian()), "--plot", tmp_path / "out.png")
    assert "pip install matplotlib" in sentence


def test_a_plot_that_cannot_be_written(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    nowhere = tmp_path / "no" / "out.png"
    sentence = refused(monkeypatch, "codecs", saved(tmp_path / "g.npy", gaussian()), "--plot", nowhere)
    assert sentence == f"hvd_qsgd: {nowhere}: No such file or directory"


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros(0, np.float32), "empty"),
        (np.array([1, np.nan], np.float32), "NaN or infinite"),
        (np.array([1e300]), "NaN or infinite"),
        (np.arange(3), "int64"),
    ],
)
def test_arrays_that_are_no_gradient(tmp_path, monkeypatch, array, reason):
    assert reason in refused(monkeypatch, "codecs", saved(tmp_path / "g.npy", array))


def test_files_that_are_no_array(tmp_path, monkeypatch):
    whole = saved(tmp_path / "g.npy", gaussian()).read_bytes()
    np.savez(tmp_path / "g.npz", gaussian())
    objects = tmp_path / "o.npy"
    np.save(objects, np.array([{}]), allow_pickle=True)
    for content in (b"", b"some text", whole[:-4], (tmp_path / "g.npz").read_bytes(), objects.read_bytes()):
        assert "no array of numbers" in refused(monkeypatch, "codecs", write(tmp_path / "g", content))


def test_the_fewest_levels_that_reach_a_variance():
    values, setting = gaussian(), {"codec": "packed", "bucket_size": None, "norm": "max"}
    found = compare.resolve(values, {**setting, "variance": 0.1})
    reached, missed = (
        compare.variance(values, hvd_qsgd.encode(values, **{**found, "levels": found["levels"] - fewer}))
        for fewer in (0, 1)
    )
    assert reached <= 0.103
    assert missed >= 0.097
    assert compare.resolve(values, {**setting, "variance": 1e-9}) is None


def test_it_runs_as_a_module():
    """And needs no kernels to tell what it takes."""
    done = subprocess.run(
        [sys.executable, "-m", "hvd_qsgd", "codecs", "--help"],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent, env={"HVD_QSGD_LIBRARY": "/no"},
    )  # fmt: skip
    assert "--plot" in done.stdout
