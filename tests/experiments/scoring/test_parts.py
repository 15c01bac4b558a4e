"""Runs that stop and go on: nothing scored is lost, nothing else is mixed in."""

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from xomni_rl.experiments.benchmarks._score_runs import kept
from xomni_rl.experiments.benchmarks.score import run
from xomni_rl.experiments.scoring import FolderScores, ScoringError, ScoringInterruptedError, score_folder

STOPPING = """
import os
from pathlib import Path
calls = []
def steady(images, prompts):
    return [image.mean() for image in images]
def stopping(images, prompts):
    calls.append(1)
    if len(calls) == 3 and not Path("again").exists():
        Path("again").touch()
        raise KeyboardInterrupt
    return [image.mean() for image in images]
def dying(images, prompts):
    if prompts[0].id == "p4" and not Path("again").exists():
        Path("again").touch()
        os.kill(os.getpid(), 9)
    return [image.mean() for image in images]
def deadly(images, prompts):
    if prompts[0].id == "p4":
        os.kill(os.getpid(), 9)
    return [image.mean() for image in images]
def slow(images, prompts):
    import time
    time.sleep(0.2)
    return [image.mean() for image in images]
"""


@pytest.fixture
def images(make_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten images; rewards of a user's own in the working directory."""
    (tmp_path / "rewards_of_a_user.py").write_text(STOPPING)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "rewards_of_a_user", raising=False)
    return make_folder()


def scored(images: Path, reward: str = "rewards_of_a_user:stopping", out: str = "s.parquet", **options: Any) -> FolderScores:
    return score_folder(images, None, [reward], out, **{"batch_size": 2, **options})


def stop(images: Path) -> None:
    """A run of five batches that is interrupted in the third."""
    with pytest.raises(ScoringInterruptedError, match="4 of 10 images are scored and kept; repeat the command to go on"):
        scored(images)
    assert kept(Path("s.parquet")) == 2


def test_interrupted_run_goes_on_to_the_same_bytes(images: Path) -> None:
    stop(images)
    assert not Path("s.parquet").exists()
    again = sys.modules["rewards_of_a_user"].calls
    again.clear()
    scored(images)
    assert len(again) == 3  # of five batches two were kept
    scored(images, out="whole.parquet")
    assert Path("s.parquet").read_bytes() == Path("whole.parquet").read_bytes()
    assert not Path(".s.parquet.parts").exists()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"batch_size": 3}, "batch size"),
        ({"reward": "rewards_of_a_user:steady"}, "rewards"),
        ({"options": {"rewards_of_a_user:stopping": {}}}, None),
        ("prompts", "prompts"),
        ("picture", "images"),
        ("code", "rewards"),
    ],
)
def test_other_work_is_not_mixed_with_what_is_kept(images: Path, change: Any, what: str | None) -> None:
    stop(images)
    if change == "prompts":
        path = images / "prompts.jsonl"
        path.write_text(path.read_text().replace("noise number 9", "noise number nine"))
    if change == "picture":
        os.utime(images / "p3.png", (1, 1))
    if change == "code":
        Path("rewards_of_a_user.py").write_text(STOPPING + "# changed\n")
    options = change if isinstance(change, dict) else {}
    if what is None:
        assert scored(images, **options).complete
        return
    with pytest.raises(ScoringError, match=f"2 batches of a run that differs in {what}: .* or --restart to begin anew"):
        scored(images, **options)
    assert kept(Path("s.parquet")) == 2
    assert scored(images, **options, restart=True).images == 10


def test_damaged_batch_is_named(images: Path) -> None:
    stop(images)
    part = Path(".s.parquet.parts/0000001.jsonl")
    part.write_text(part.read_text()[:-20])
    with pytest.raises(ScoringError, match=r"0000001\.jsonl: is damaged; delete it and repeat the command"):
        scored(images)
    part.unlink()
    assert scored(images).images == 10


def test_second_process_on_one_table_is_refused(images: Path) -> None:
    words = [sys.executable, "-m", "xomni_rl", "score", str(images), "--reward", "rewards_of_a_user:slow"]
    words += ["--out", "s.parquet", "--batch-size", "1"]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": str(Path.cwd())}) as process:
        while kept(Path("s.parquet")) < 1:
            assert process.poll() is None
        with pytest.raises(ScoringError, match=r"s\.parquet: another process is scoring to it"):
            scored(images)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    assert kept(Path("s.parquet")) >= 1  # Ctrl-C of a real process keeps what there is


def test_ctrl_c_while_processes_start_is_one_sentence(images: Path) -> None:
    words = [sys.executable, "-m", "xomni_rl", "score", str(images), "--reward", "contrast", "--workers", "2"]
    words += ["--out", "s.parquet", "--batch-size", "1"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while len(children.read_text().split()) < 3:  # the two and multiprocessing's tracker
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does; they import for a second before they see a batch
        assert process.wait(timeout=60) == 130
        assert process.stderr is not None
        said = process.stderr.read()
    assert said.splitlines() == ["interrupted: 0 of 10 images are scored and kept; repeat the command to go on"]


def test_process_that_dies_is_replaced_and_the_table_is_the_same(images: Path) -> None:
    """Also: two processes give the bytes of one."""
    whole = scored(images, "rewards_of_a_user:dying", "two.parquet", workers=2)
    assert whole.complete
    scored(images, "rewards_of_a_user:dying", "one.parquet")
    assert Path("one.parquet").read_bytes() == Path("two.parquet").read_bytes()


def test_batch_that_kills_twice_stops_the_run_and_keeps_the_rest(images: Path) -> None:
    with pytest.raises(ScoringError, match=r"died twice \(SIGKILL\) on the images p4\.png to p5\.png"):
        scored(images, "rewards_of_a_user:deadly", workers=2)
    assert kept(Path("s.parquet")) >= 1


@pytest.mark.parametrize(
    ("limit", "sentence", "batches"),
    [
        (100, "parts: cannot be written: File too large", 0),
        (600, "parts: cannot be written: File too large; what is scored is kept there: make room", 1),
        (1200, r"s\.parquet: cannot be written: .*File too large; all scores are kept in", 2),
    ],
    ids=["at once", "in the second batch", "in the table"],
)
def test_full_disk_keeps_what_is_scored(images: Path, limit: int, sentence: str, batches: int) -> None:
    """A limit on the size of files, in bytes, fails as a full disk does."""
    (images / "p9.png").write_bytes(b"no picture" * 3)
    lines = (images / "prompts.jsonl").read_text().splitlines()
    long = images / ("p" * 180 + ".png")  # the error names the file, which makes the second batch longer than the limit
    (images / "p9.png").rename(long)
    (images / "prompts.jsonl").write_text("\n".join([*lines[:-1], json.dumps({"id": long.stem, "text": "noise"})]))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(ScoringError, match=sentence):
            scored(images, "rewards_of_a_user:steady", batch_size=5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert kept(Path("s.parquet")) == batches
    assert Path(".s.parquet.parts").exists() == bool(batches)
    assert scored(images, "rewards_of_a_user:steady", batch_size=5).images == 10
    assert not Path(".s.parquet.parts").exists()


@pytest.mark.slow
def test_large_run_killed_three_times_gives_the_bytes_of_one_left_alone(tmp_path: Path) -> None:
    """The benchmark itself, with fewer images than it takes."""
    figures = run(640, tmp_path / "work")
    assert figures["identical"] == 1
    for kept_batches, least in zip(figures["kills"], (4, 10, 16), strict=True):  # a fifth, half and four fifths of 20
        assert least <= kept_batches <= 20
    assert 1 <= figures["ratio"] < 2


def test_model_gives_the_same_bytes_in_one_process_and_in_two(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.delenv(variable, raising=False)
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    scored(images, "clip", "one.csv", options={"clip": {"model": "embedded"}}, batch_size=5)
    assert torch.get_num_threads() == threads
    scored(images, "clip", "two.csv", options={"clip": {"model": "embedded"}}, batch_size=5, workers=2)
    assert Path("one.csv").read_bytes() == Path("two.csv").read_bytes()
