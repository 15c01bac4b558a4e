"""The `datasets` set: saved folders, folders of files, parts, columns, what is said when a dataset cannot be read."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from xomni_rl.prompt_sets.cleaning import PromptWarning
from xomni_rl.prompts import Prompt, PromptError, prompt_sets

datasets = pytest.importorskip("datasets")
COLUMNS = {"text": "caption", "texts": "words", "id": "key", "metadata": ["score"]}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is looked for on the hub, and no cache but the test's own is written."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def dataset(captions: list[str | None]) -> Any:
    count = len(captions)
    words = [["A", "B"] if i == 0 else None for i in range(count)]
    return datasets.Dataset.from_dict(
        {"caption": captions, "words": words, "key": list(range(7, 7 + count)), "score": [0.5] * count, "x": [1] * count}
    )


def read(path: Path | str, **options: Any) -> list[Prompt]:
    options = {"split": "train", "count": 1000, "seed": 0, "path": path, "columns": COLUMNS, "heldout_share": 1e-9} | options
    return prompt_sets.get("datasets")(**options)


def texts(found: list[Prompt]) -> dict[str, str]:
    return {prompt.id: prompt.text for prompt in found}


def test_saved_dataset_is_read_with_its_columns(tmp_path: Path) -> None:
    dataset(["a cat", "a dog"]).save_to_disk(tmp_path / "saved")
    found = sorted(read(tmp_path / "saved"), key=lambda p: p.id)
    assert found == [
        Prompt("7", "a cat", ("A", "B"), metadata={"score": 0.5}),
        Prompt("8", "a dog", metadata={"score": 0.5}),
    ]


def test_parts_of_a_saved_dictionary_are_training_and_heldout_prompts(tmp_path: Path) -> None:
    parts = datasets.DatasetDict({"train": dataset(["a", "b"]), "test": dataset(["B.", "c"])})
    parts.save_to_disk(tmp_path / "saved")
    heldout = read(tmp_path / "saved", heldout_part="test", split="heldout")
    # The keys 7 and 8 are in both parts, so that those held out get a prefix.
    assert texts(heldout) == {"heldout-7": "B.", "heldout-8": "c"}
    with pytest.raises(PromptError, match=r'\[train\]: the text of prompt "8" is in .*\[test\] too: "b"'):
        read(tmp_path / "saved", heldout_part="test")
    with pytest.warns(PromptWarning, match="1 used for evaluation"):
        assert texts(read(tmp_path / "saved", heldout_part="test", exclude=["heldout"])) == {"7": "a"}
    with pytest.raises(PromptError, match='there is no part "validation"; its parts: train, test'):
        read(tmp_path / "saved", part="validation")


def test_folder_of_data_files_is_streamed_and_code_in_it_is_never_run(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    dataset(["a cat", "a dog"]).to_parquet(folder / "train.parquet")
    assert texts(read(folder)) == {"7": "a cat", "8": "a dog"}
    (folder / "files.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(PromptError, match="scripts are no longer supported"):
        read(folder)
    assert not (tmp_path / "ran").exists()


def test_malformed_row_is_refused_by_number_or_skipped_and_counted(tmp_path: Path) -> None:
    dataset(["a cat", None, " "]).save_to_disk(tmp_path / "saved")
    with pytest.raises(PromptError, match=r'saved \[train\], row 2: there is no text in column "caption"; mend it'):
        read(tmp_path / "saved")
    with pytest.warns(PromptWarning, match=r"2 malformed \(.*row 2: .*row 3: text must not be empty\)"):
        assert texts(read(tmp_path / "saved", malformed="skip")) == {"7": "a cat"}


def test_column_that_is_not_there_is_named_with_its_neighbours(tmp_path: Path) -> None:
    dataset(["a"]).save_to_disk(tmp_path / "saved")
    with pytest.raises(PromptError, match='unknown column "captoin"; nearest: caption'):
        read(tmp_path / "saved", columns={"text": "captoin"})


def test_dataset_that_is_not_here_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=r"someone/captions \[train\]: cannot be read: .*a name on the hub needs the network"):
        read("someone/captions")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PromptError, match=r"empty \[train\]: cannot be read"):
        read(tmp_path / "empty")
    with pytest.raises(ValueError, match='prompt set "datasets" needs path'):
        prompt_sets.get("datasets")("train", 1, 0)


def test_missing_library_is_one_sentence_and_the_sets_are_listed_without_it(tmp_path: Path) -> None:
    # Python takes None in sys.modules for a module that cannot be imported.
    script = f"""
import sys
sys.modules["datasets"] = None
from xomni_rl.prompts import PromptError, prompt_sets
assert "datasets" in prompt_sets.names()
try:
    prompt_sets.get("datasets")("train", 1, 0, path={str(tmp_path)!r})
except PromptError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == f'{tmp_path}: the prompt set "datasets" needs a library: pip install datasets\n'
