"""Weights found, read and shared: what is missing or wrong is one sentence with the remedy."""

import os
import pickle
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from xomni_rl.rewards.base import RewardUnavailableError
from xomni_rl.rewards.models import (
    Placement,
    Source,
    find_weights,
    forget_models,
    load_tensors,
    read_tensors,
    shared_model,
    tokenizer_folder,
)

FILE = Source("scorer.pt", "https://example.org/scorer", "MIT")
REPO = Source("the scorer folder", "https://example.org/scorer", "MIT", repo="nobody/scorer")


def test_given_path_is_taken(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"x")
    assert find_weights("s", tmp_path / "a.pt", FILE) == tmp_path / "a.pt"


@pytest.mark.parametrize(
    ("weights", "source", "reason"),
    [
        (None, FILE, "its weights are not on this machine"),
        ("there/is/no.pt", FILE, "there/is/no.pt does not exist"),
        (None, REPO, "nobody/scorer is neither a file here nor in the model hub's cache, and cannot be fetched"),
        ("some/body", REPO, "some/body is neither a file here nor in the model hub's cache, and cannot be fetched"),
    ],
)
def test_missing_weights_say_what_to_download_from_where_under_which_licence(
    weights: str | None, source: Source, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(RewardUnavailableError) as caught:
        find_weights("score", weights, source)
    said = str(caught.value)
    assert said.startswith(f'reward "score": {reason}')
    for part in (source.what, source.where, "licence: MIT", "weights=PATH"):
        assert part in said


class Hub:
    """A model hub that answers every request with 503, and counts them."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.asked.append(self.path)
                self.send_error(503)

            def do_HEAD(self) -> None:
                self.do_GET()

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The only hub there is, with an empty cache in `tmp_path`."""
    made = Hub()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{made.server.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield made
    made.server.shutdown()
    made.server.server_close()


def cached(folder: Path, repo: str, *files: str) -> Path:
    """Puts files into the hub's cache as if they had been downloaded; their folder."""
    home = folder / f"models--{repo.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("0a")
    snapshot = home / "snapshots" / "0a"
    snapshot.mkdir(parents=True)
    for name in files:
        (snapshot / name).write_bytes(b"x")
    return snapshot


ONE_FILE = Source("scorer.pt", "https://example.org/scorer", "MIT", repo="nobody/scorer", file="scorer.pt")


@pytest.mark.parametrize("source", [REPO, ONE_FILE])
def test_hub_that_does_not_answer_is_asked_once_and_nothing_is_printed(
    hub: Hub, source: Source, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RewardUnavailableError, match=r"cannot be fetched .*download .*licence: MIT"):
        find_weights("s", None, source)
    assert len(hub.asked) == 1  # trying it again and again takes 23 s
    assert capfd.readouterr() == ("", "")


def test_file_in_the_hubs_cache_is_taken_without_asking(hub: Hub, tmp_path: Path) -> None:
    snapshot = cached(tmp_path, "nobody/scorer", "scorer.pt")
    assert find_weights("s", None, ONE_FILE) == snapshot / "scorer.pt"
    assert find_weights("s", "nobody/scorer", ONE_FILE) == snapshot / "scorer.pt"
    assert hub.asked == []


def test_hub_is_asked_for_a_folder_once_and_not_at_every_score(hub: Hub, tmp_path: Path) -> None:
    snapshot = cached(tmp_path, "nobody/scorer", "config.json")
    assert [find_weights("s", None, REPO) for _ in range(3)] == [snapshot] * 3
    assert len(hub.asked) == 1


def test_cached_repository_without_the_file_is_told(hub: Hub, tmp_path: Path) -> None:
    cached(tmp_path, "nobody/scorer", "another.pt")
    with pytest.raises(RewardUnavailableError, match=r"download scorer\.pt"):
        find_weights("s", None, ONE_FILE)


def test_tokenizer_is_a_folder_or_comes_from_the_hubs_cache(hub: Hub, tmp_path: Path) -> None:
    snapshot = cached(tmp_path, "nobody/words", "tokenizer.json")
    assert tokenizer_folder(str(tmp_path)) == tmp_path
    assert [tokenizer_folder("nobody/words") for _ in range(2)] == [snapshot] * 2
    assert len(hub.asked) == 1


def tensors() -> dict[str, torch.Tensor]:
    return {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.zeros(2)}


@pytest.mark.parametrize("wrapped", [None, "state_dict", "model"])
def test_torch_file_is_read_with_or_without_a_wrapper(tmp_path: Path, wrapped: str | None) -> None:
    torch.save(tensors() if wrapped is None else {wrapped: tensors(), "epoch": 3}, tmp_path / "a.pt")
    read = read_tensors("s", tmp_path / "a.pt", FILE)
    assert sorted(read) == ["bias", "weight"]
    assert torch.equal(read["weight"], tensors()["weight"])


def test_safetensors_file_is_read(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "a.safetensors")
    assert torch.equal(read_tensors("s", tmp_path / "a.safetensors", FILE)["weight"], tensors()["weight"])


class Hostile:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, (str(self.path),)


def test_file_that_would_run_code_is_refused_and_runs_none(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(pickle.dumps({"weight": Hostile(tmp_path / "owned")}))
    torch.save({"weight": Hostile(tmp_path / "owned")}, tmp_path / "b.pt")
    for name in ("a.pt", "b.pt"):
        with pytest.raises(
            RewardUnavailableError,
            match=rf"{name} cannot be read \(it is damaged, or holds more than tensors.*download scorer\.pt",
        ):
            read_tensors("s", tmp_path / name, FILE)
    assert not (tmp_path / "owned").exists()


def test_truncated_and_empty_files_are_named(tmp_path: Path) -> None:
    torch.save(tensors(), tmp_path / "whole.pt")
    (tmp_path / "half.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:200])
    (tmp_path / "empty.safetensors").write_bytes(b"")
    torch.save({"epoch": 3}, tmp_path / "no_tensors.pt")
    for name in ("half.pt", "empty.safetensors", "no_tensors.pt"):
        with pytest.raises(RewardUnavailableError, match=f"{name} cannot be read"):
            read_tensors("s", tmp_path / name, FILE)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"bias": None}, "bias is missing"),
        ({"more": torch.zeros(1)}, "more is unknown"),
        ({"weight": torch.zeros(3, 2)}, r"weight is \[3, 2\] instead of \[2, 3\]"),
    ],
)
def test_checkpoint_that_does_not_fit_names_the_first_tensor(change: dict[str, torch.Tensor | None], reason: str) -> None:
    given = {name: value for name, value in (tensors() | change).items() if value is not None}
    with pytest.raises(RewardUnavailableError, match=rf"a\.pt is not scorer\.pt \({reason}.*licence: MIT.*head=PATH"):
        load_tensors("s", nn.Linear(3, 2), given, Path("a.pt"), FILE, option="head")


def test_fitting_checkpoint_is_loaded() -> None:
    module = nn.Linear(3, 2)
    load_tensors("s", module, tensors(), Path("a.pt"), FILE)
    assert torch.equal(module.weight, tensors()["weight"])


def test_unknown_dtype_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match='"flaot32"; nearest: float32'):
        Placement(dtype="flaot32")


def test_device_that_is_not_there_is_a_sentence() -> None:
    for device in ("cuda:99", "warp"):
        with pytest.raises(RewardUnavailableError, match=f"device '{device}' cannot be used"):
            Placement(device=device).torch_device()


def test_model_is_loaded_once_even_from_many_threads_and_again_after_forgetting() -> None:
    made = []

    def load() -> tuple[nn.Module, dict[str, object]]:
        made.append(nn.Linear(3, 2))
        return made[-1], {"tokenizer": "t"}

    found = []
    threads = [
        threading.Thread(target=lambda: found.append(shared_model(("test", "a"), Placement(device="cpu"), load)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert all(model is found[0] for model in found)
    assert not found[0].module.training
    assert not any(p.requires_grad for p in found[0].module.parameters())
    assert shared_model(("test", "b"), Placement(device="cpu"), load) is not found[0]
    forget_models()
    assert shared_model(("test", "a"), Placement(device="cpu"), load) is not found[0]


def test_model_has_the_asked_dtype_and_gives_no_gradients() -> None:
    placement = Placement(device="cpu", dtype="bfloat16", offload=True)
    shared = shared_model(("test", "c"), placement, lambda: (nn.Linear(3, 2), {}))
    with shared.use() as device:
        out = shared.module(torch.zeros(1, 3, dtype=torch.bfloat16, device=device))
    assert out.dtype == torch.bfloat16
    assert not out.requires_grad


class Moved(nn.Linear):
    """Notes where it is sent and stays: torch's "meta" stands for a GPU, from which no tensor would come back."""

    def __init__(self) -> None:
        super().__init__(3, 2)
        self.sent: list[str] = []

    def to(self, *places: Any, **options: Any) -> "Moved":
        self.sent += [str(place) for place in places if isinstance(place, str | torch.device)]
        return self


@pytest.mark.parametrize(("offload", "sent"), [(True, ["meta", "cpu"]), (False, ["meta"])])
def test_offloaded_model_is_on_its_device_for_the_call_and_leaves_it_also_after_an_error(
    offload: bool, sent: list[str]
) -> None:
    shared = shared_model(("test", "moved"), Placement("meta", offload=offload), lambda: (Moved(), {}))
    with shared.use() as device:
        assert device.type == "meta"
        assert shared.module.sent == ["meta"]
    assert shared.module.sent == sent
    with pytest.raises(ZeroDivisionError), shared.use():
        raise ZeroDivisionError
    assert shared.module.sent == sent * 2
    forget_models()


def test_model_on_the_cpu_is_not_moved_by_offloading() -> None:
    shared = shared_model(("test", "stays"), Placement("cpu", offload=True), lambda: (Moved(), {}))
    with shared.use():
        pass
    assert shared.module.sent == ["cpu"]
    forget_models()
