"""A run's files: tables, metrics that can be taken back, manifest."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from xomni_rl.envs.rollout import RolloutBatch
from xomni_rl.policies.records import (
    RunFolder,
    RunFolderError,
    TableWriter,
    build_manifest,
    finite,
    prompts_hash,
    read_config,
    read_manifest,
    read_rows,
    rollout_table,
    write_atomically,
)
from xomni_rl.prompts import Prompt


def test_table_has_one_row_per_rollout_with_its_tokens_scores_and_picture(batch: RolloutBatch) -> None:
    advantages = np.linspace(-1, 1, 6, dtype=np.float32)
    table = rollout_table(batch, advantages, images=6)
    rows = table.to_pylist()
    assert [row["prompt_id"] for row in rows] == ["p0", "p0", "p1", "p1", "p2", "p2"]
    assert [row["index"] for row in rows] == [0, 1] * 3
    assert [row["group"] for row in rows] == [0, 0, 1, 1, 2, 2]
    assert rows[3]["tokens"] == batch.tokens[3].tolist()
    assert table.schema.field("tokens").type == pa.list_(pa.int16())
    np.testing.assert_array_equal(table["reward_red"].to_numpy(), batch.rewards.components[:, 0])
    np.testing.assert_array_equal(table["metric_red_square"].to_numpy(), batch.rewards.metrics["red_square"])
    np.testing.assert_array_equal(table["advantage"].to_numpy(), advantages)
    assert rows[0]["read"] == batch.rewards.details[0]["red"]["read"]
    assert json.loads(rows[0]["details"]) == batch.rewards.details[0]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(rows[5]["image"]))), batch.images[5])


def test_table_without_images_keeps_the_column(batch: RolloutBatch) -> None:
    assert rollout_table(batch, None, images=0)["image"].to_pylist() == [None] * 6


def test_advantages_per_token_are_kept_as_their_mean(batch: RolloutBatch) -> None:
    advantages = np.arange(48, dtype=np.float32).reshape(6, 8)
    # row 0 holds 0 … 7, whose mean is 3.5; each row is 8 higher
    assert rollout_table(batch, advantages, 0)["advantage"].to_pylist() == [3.5, 11.5, 19.5, 27.5, 35.5, 43.5]


def test_joined_writer_has_everything_on_disk(batch: RolloutBatch, tmp_path: Path) -> None:
    writer = TableWriter()
    files = [tmp_path / f"step_{step:06d}.parquet" for step in range(1, 9)]
    for file in files:
        writer.put(file, batch, None, 6)
    writer.join()
    expected = rollout_table(batch, None, 6)
    assert all(pq.read_table(file).equals(expected) for file in files)
    assert sorted(tmp_path.iterdir()) == files
    writer.close()


def test_table_that_cannot_be_written_is_an_error_at_the_next_call(batch: RolloutBatch, tmp_path: Path) -> None:
    writer = TableWriter()
    writer.put(tmp_path / "missing" / "step_000001.parquet", batch, None, 0)
    with pytest.raises(RunFolderError, match="cannot write the table"):
        writer.join()
    with pytest.raises(RunFolderError, match="cannot write the table"):
        writer.put(tmp_path / "step_000002.parquet", batch, None, 0)
    writer.close()


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    run.create()
    for step in range(5):
        run.append(run.metrics, {"step": step, "reward": 0.1 * step})
        run.append(run.alarms, {"step": step, "alarm": "a"})
        for tables in (run.rollouts, run.heldout):
            pq.write_table(pa.table({"step": [step]}), tables / f"step_{step:06d}.parquet")
    return run


def test_truncating_takes_back_what_came_after_a_step(folder: RunFolder) -> None:
    kept = folder.metrics.read_text().splitlines(keepends=True)[:3]
    with folder.metrics.open("a") as stream:
        stream.write('{"step": 5, "rew')  # a kill in the middle of a line
    (folder.rollouts / ".step_000005.parquet.tmp").write_text("half")
    folder.truncate(2)
    assert folder.metrics.read_text() == "".join(kept)
    assert [row["step"] for row in read_rows(folder.alarms)] == [0, 1, 2]
    for tables in (folder.rollouts, folder.heldout):
        assert sorted(path.name for path in tables.iterdir()) == [f"step_{step:06d}.parquet" for step in range(3)]


def test_truncating_to_before_the_start_leaves_nothing(folder: RunFolder) -> None:
    folder.truncate(-1)
    assert folder.metrics.read_text() == ""
    assert list(folder.rollouts.iterdir()) == []


def test_damaged_line_in_the_middle_is_named(folder: RunFolder) -> None:
    lines = folder.metrics.read_text().splitlines()
    folder.metrics.write_text("\n".join([lines[0], "{broken", *lines[2:]]) + "\n")
    with pytest.raises(RunFolderError, match=r"metrics\.jsonl:2: not JSON"):
        folder.truncate(3)


@pytest.mark.parametrize("line", ["5", '{"loss": 1.0}', '{"step": "x"}', "null"])
def test_line_without_a_step_is_named(folder: RunFolder, line: str) -> None:
    folder.metrics.write_text(line + "\n")
    with pytest.raises(RunFolderError, match=r"metrics\.jsonl:1: no object with a step; delete this line"):
        folder.truncate(3)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"config": {}}', "5"])
def test_damaged_manifest_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(RunFolderError, match=r"manifest\.json is damaged \(.*\); restore it to go on"):
        read_manifest(tmp_path / "manifest.json")


@pytest.mark.parametrize("text", ["", "- a", "a: [", "trainer: {}"])
def test_damaged_configuration_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(RunFolderError, match=r"config\.yaml is damaged \(.*\); restore it to go on"):
        read_config(tmp_path / "config.yaml")


def test_second_process_in_one_folder_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    first, second = RunFolder(tmp_path), RunFolder(tmp_path)
    first.create()
    with pytest.raises(RunFolderError, match=r"another process is training in .*: wait for it, or choose another folder"):
        second.create(again=True)
    first.release()
    second.create(again=True)
    second.release()


def test_folder_that_holds_a_run_is_not_begun_again(folder: RunFolder) -> None:
    folder.manifest.write_text("{}")
    with pytest.raises(RunFolderError, match=r"already holds a run.*resume="):
        folder.create()


def test_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="choose another folder with run="):
        RunFolder(tmp_path / "file" / "run").create()


def test_failed_replacement_leaves_the_old_file_alone(tmp_path: Path) -> None:
    (tmp_path / "summary.json").mkdir()  # a folder cannot be replaced by a file
    with pytest.raises(OSError, match="summary"):
        write_atomically(tmp_path / "summary.json", "{}")
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_metric_that_is_no_number_is_absent() -> None:
    assert finite({"a": 1.0, "b": float("nan"), "c": float("inf")}) == {"a": 1.0}


def test_prompts_hash_changes_with_every_field_and_with_order() -> None:
    one, two = Prompt("a", "x"), Prompt("b", "y")
    hashes = [[one, two], [two, one], [one], [Prompt("a", "x", texts=("x",)), two], [Prompt("a", "z"), two]]
    assert len({prompts_hash(prompts) for prompts in hashes}) == 5
    assert prompts_hash([one, two]) == prompts_hash([Prompt("a", "x"), Prompt("b", "y")])


def test_manifest_says_what_made_the_run() -> None:
    made = build_manifest({"seed": 3}, {"run": 3}, {"autoregressive": "ab"}, {"train": [Prompt("a", "x")], "heldout": []})
    assert made["config"] == {"seed": 3}
    assert made["packages"]["torch"].startswith("2.")
    assert made["packages"]["xomni-rl"]
    assert made["prompts"]["train"]["count"] == 1
    assert made["commit"] is None or len(made["commit"].removesuffix("+changes")) == 40
    assert {"started", "python", "platform", "torch_threads", "seeds", "weights", "resumes"} <= made.keys()
