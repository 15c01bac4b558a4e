"""Is a reward fit to train on? It is loaded, it scores its calibration pair, and what is wrong is said in sentences.

`quick_check` is what training runs before step 0; `examine` adds what takes longer: repeats, batches, time, memory, hashes.
Nothing is printed here, and the random state of Python, NumPy and torch is left as it was.

An error means that no number can be trusted (cannot be loaded; fails, or has no score, on its own pair). A warning means
that the numbers are there but look wrong (alike, or ranked the wrong way round): random weights do that in a dry run, so it is
said and recorded, and training goes on.
"""

import ast
import hashlib
import importlib.metadata
import importlib.util
import random
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from xomni_rl.prompt_sets.signs import render_sign
from xomni_rl.prompts import Prompt
from xomni_rl.rewards.base import FunctionReward, Reward, RewardError, RewardUnavailableError
from xomni_rl.rewards.composite import CompositeReward
from xomni_rl.rewards.models import loaded_models
from xomni_rl.rewards.open_clip_backbone import forget_features

TOLERANCE = 1e-5
"""Scores may differ by this much, times the larger of 1 and the score, between repeats and batches."""
_PAIR = ("good image", "worthless image")
_OWN = ("blue sign", "red sign", "image of noise", "blank image")


@dataclass
class Health:
    """What the quick check found of one component.

    Args:
        name: of the component.
        version: of the reward; "" = it could not be loaded. (A served one says it only when it is there.)
        scores: of the good and the worthless calibration image; None = it has none, or they could not be scored.
        errors: sentences; with one of them, no score of this reward can be used.
        warnings: sentences; the scores are there, but look wrong.
    """

    name: str
    version: str = ""
    scores: tuple[float, float] | None = None
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass
class Examination(Health):
    """What the whole examination found of one component.

    Args:
        load_seconds: to load it and score its pair for the first time.
        seconds_per_image: in a batch of `batch` images, the better of two runs.
        memory: bytes by which the process grew since before loading; None = the system does not say.
        parameters: of the shared models that were loaded for it; those that another reward loaded are not counted.
        packages: distribution → version, of those that its code imports and this process has loaded.
        files: file → SHA-256 of what decides the scores.
        not_examined: sentences that say what nothing is known of, and why.
    """

    load_seconds: float = 0.0
    seconds_per_image: float | None = None
    batch: int = 0
    memory: int | None = None
    parameters: int = 0
    packages: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    not_examined: list[str] = field(default_factory=list)


def check_before_training(reward: CompositeReward) -> list[Health]:
    """Loads every component and scores its calibration pair, in seconds.

    Returns: what was found, component by component; warnings are in there.
    Raises: RewardUnavailableError with every error of every component.
    """
    found = [quick_check(part.name, part.reward) for part in reward.parts]
    errors = [error for health in found for error in health.errors]
    if errors:
        raise RewardUnavailableError("; ".join(errors))
    return found


def quick_check(name: str, reward: Reward) -> Health:
    """Loads a reward and scores its calibration pair in one batch."""
    health = Health(name)
    with random_state_kept():
        _load(reward, health)
        if not health.errors:
            _score_pair(reward, health)
    return health


def examine(name: str, reward: Reward, batch: int = 16) -> Examination:
    """The quick check, then repeats, batches against single images, time, memory, packages and hashes.

    A reward without a calibration pair scores signs, noise and a blank image instead, which says nothing of its ranking.
    """
    found = Examination(name, batch=batch)
    memory, models = resident_memory(), set(loaded_models())
    with random_state_kept():
        began = time.perf_counter()
        _load(reward, found)
        pair = None if found.errors else _score_pair(reward, found)
        found.load_seconds = time.perf_counter() - began
        if pair is None and not found.errors:
            found.not_examined.append(
                "whether a good image scores above a worthless one: it has no calibration pair, and scored signs, noise and a "
                "blank image instead; give it a self_check"
            )
            _repeat(reward, found, own_probes(), _OWN)
        elif pair is not None and not found.errors:
            names = (*_PAIR, "image of noise", "mirrored good image")
            _repeat(reward, found, [(image, pair[2]) for image in probes(pair)], names)
    after = resident_memory()
    if memory is not None and after is not None:
        found.memory = max(0, after - memory)
    new = [model for key, model in loaded_models().items() if key not in models]
    found.parameters = sum(parameter.numel() for model in new for parameter in model.module.parameters())
    if not found.errors:
        found.packages = packages_of(reward)
        found.files = hashes_of(reward)
    return found


def probes(pair: tuple[np.ndarray, np.ndarray, Prompt]) -> list[np.ndarray]:
    """The calibration images, noise, and the good image mirrored: uint8 [H, W, 3] each, the same at every call."""
    good, worthless, _ = pair
    noise = np.random.default_rng(0).integers(0, 256, good.shape).astype(np.uint8)
    return [good, worthless, noise, np.ascontiguousarray(good[:, ::-1])]


def own_probes() -> list[tuple[np.ndarray, Prompt]]:
    """Two signs, noise and a blank image, uint8 [H, W, 3], each with a prompt of its own: for a reward without a pair."""
    signs = [render_sign("K7AX", "blue"), render_sign("B2", "red")]
    noise = np.random.default_rng(0).integers(0, 256, signs[0].shape).astype(np.uint8)
    texts = ('a blue sign that says "K7AX"', 'a red sign that says "B2"', "grey noise", "a blank picture")
    pictures = [*signs, noise, np.full_like(noise, 127)]
    return [(picture, Prompt(str(index), text)) for index, (picture, text) in enumerate(zip(pictures, texts, strict=True))]


def hashes_of(reward: Reward) -> dict[str, str]:
    """File → SHA-256 of the files that decide a reward's scores; a folder's by relative path.

    Raises: RewardUnavailableError if one is missing.
    """
    hashes: dict[str, str] = {}
    for path in reward.files():
        for file in sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]:
            try:
                with open(file, "rb") as stream:
                    hashes[str(file)] = hashlib.file_digest(stream, "sha256").hexdigest()
            except OSError as error:
                raise RewardUnavailableError(
                    f'reward "{reward.name}": {file} cannot be read ({error.strerror}); restore it'
                ) from error
    return hashes


def packages_of(reward: Reward) -> dict[str, str]:
    """Distribution → version of what a reward's module, and the modules of ours behind it, import and have loaded."""
    code = reward.function if isinstance(reward, FunctionReward) else type(reward)
    roots = {name.partition(".")[0] for name in _imports(str(code.__module__), set())}
    owners = importlib.metadata.packages_distributions()
    used = sorted({owners[root][0] for root in roots if root in owners and root in sys.modules})
    return {name: importlib.metadata.version(name) for name in used if name != "xomni-rl"}


def resident_memory() -> int | None:
    """Bytes of memory that this process holds; None where the system has no /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return None
    import resource

    return pages * resource.getpagesize()


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Puts the global generators of Python, NumPy and torch (with its GPUs) back as they were."""
    torch = sys.modules.get("torch")  # not imported yet: then nobody has drawn from it either
    python, numpy = random.getstate(), np.random.get_state()
    state = torch.get_rng_state() if torch else None
    gpus = torch.cuda.get_rng_state_all() if torch and torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        if torch:
            torch.set_rng_state(state)
            if gpus is not None:
                torch.cuda.set_rng_state_all(gpus)


def _load(reward: Reward, health: Health) -> None:
    try:
        reward.load()
        health.version = reward.version
    except RewardUnavailableError as error:
        health.errors.append(str(error))
    except (Exception, SystemExit) as error:  # a user's reward raises what it likes
        health.errors.append(f'reward "{health.name}" cannot be loaded: {type(error).__name__}: {error}')


def _score_pair(reward: Reward, health: Health) -> tuple[np.ndarray, np.ndarray, Prompt] | None:
    """Scores the pair, and notes what is wrong with that; the pair, or None without one."""
    try:
        pair = reward.self_check()
    except NotImplementedError:
        return None
    except RewardUnavailableError as error:
        health.errors.append(str(error))
        return None
    except (Exception, SystemExit) as error:
        health.warnings.append(f'reward "{health.name}" cannot make its calibration pair: {type(error).__name__}: {error}')
        return None
    good, worthless, prompt = pair
    scores = _scores(reward, health, [good, worthless], [prompt] * 2, _PAIR)
    if scores is not None:
        health.scores = (float(scores[0]), float(scores[1]))
        health.errors += [
            f'reward "{health.name}" has no score for the {what} of its own calibration pair (not applicable)'
            for what, score in zip(_PAIR, scores, strict=True)
            if np.isnan(score)
        ]
        if not health.errors:
            _judge_ranking(reward, health, *health.scores)
    return pair


def _judge_ranking(reward: Reward, health: Health, good: float, worthless: float) -> None:
    if good == worthless:
        health.warnings.append(f'reward "{health.name}" scores its good and its worthless image alike ({good:.4g})')
    elif (good > worthless) != reward.higher_is_better:
        health.warnings.append(
            f'reward "{health.name}" ranks its worthless image ({worthless:.4g}) above its good one ({good:.4g}); '
            f"{'higher' if reward.higher_is_better else 'lower'} is better"
        )


def _scores(
    reward: Reward, health: Health, images: list[np.ndarray], prompts: Sequence[Prompt], what: Sequence[str]
) -> np.ndarray | None:
    """float32 [N], or None with the reason among the errors."""
    try:
        return reward(images, prompts).scores
    except RewardUnavailableError as error:
        health.errors.append(str(error))
    except RewardError as error:
        index, reason = next(iter(error.failures.items()), (0, "no sample named"))
        health.errors.append(f'reward "{health.name}" fails on the {what[index % len(what)]}: {reason}')
    except (Exception, SystemExit) as error:  # a user's reward raises what it likes
        health.errors.append(f'reward "{health.name}" fails: {type(error).__name__}: {error}')
    return None


def _repeat(reward: Reward, found: Examination, samples: Sequence[tuple[np.ndarray, Prompt]], names: Sequence[str]) -> None:
    """One batch twice, and its first images one by one: time, repeatability, independence of the batch."""
    images = _filled([image for image, _ in samples], found.batch)
    prompts, runs = [samples[index % len(samples)][1] for index in range(len(images))], []
    for _ in range(2):
        forget_features()  # or the second run would only look up what the first one computed
        began = time.perf_counter()
        scores = _scores(reward, found, images, prompts, names)
        elapsed = (time.perf_counter() - began) / len(images)
        found.seconds_per_image = min(elapsed, found.seconds_per_image or elapsed)
        if scores is None:
            return
        runs.append(scores)
    forget_features()
    singles = [_scores(reward, found, [image], [prompt], [what]) for (image, prompt), what in zip(samples, names, strict=True)]
    if any(single is None for single in singles):
        return
    alone = np.array([single[0] for single in singles if single is not None])
    together = runs[1][: len(alone)]
    scored = alone[~np.isnan(alone)]
    if not len(scored):
        found.not_examined.append(f"its scores: it applies to none of the images it was shown ({', '.join(names)})")
    elif np.ptp(scored) == 0:
        found.warnings.append(f'reward "{found.name}" is constant: {scored[0]:.4g} for every image')
    if (difference := _difference(*runs)) > TOLERANCE:
        found.warnings.append(f'reward "{found.name}" is not deterministic: the same batch again differs by {difference:.2g}')
    elif (difference := _difference(together, alone)) > TOLERANCE:
        found.warnings.append(
            f'reward "{found.name}" depends on the batch: an image scored alone differs by {difference:.2g} '
            f"from the same image among {len(images)}"
        )


def _filled(pictures: Sequence[np.ndarray], count: int) -> list[np.ndarray]:
    """The pictures and then, up to `count`, copies with one pixel inverted: no two are alike, so that each costs its time."""
    images = list(pictures)
    while len(images) < count:
        copies, place = divmod(len(images), len(pictures))
        copy = np.array(pictures[place])
        copy.reshape(-1, 3)[copies % (copy.size // 3)] ^= 255
        images.append(copy)
    return images


def _difference(one: np.ndarray, other: np.ndarray) -> float:
    """Largest difference in units of max(1, |score|); infinite if one applies where the other doesn't."""
    if (np.isnan(one) != np.isnan(other)).any():
        return np.inf
    scale = np.maximum(1.0, np.abs(one))
    return float(np.nanmax(np.abs(one - other) / scale, initial=0.0))


def _imports(module: str, seen: set[str]) -> set[str]:
    """Names that a module imports anywhere in its source, through the rewards of this package that it imports."""
    seen.add(module)
    try:
        spec = importlib.util.find_spec(module)
        source = Path(str(spec.origin)).read_text(encoding="utf-8") if spec else ""
    except (ImportError, ValueError, OSError):  # a reward from a file, or from an interactive session
        return set()
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module]
        found.update(names)
    ours = [name for name in found if name.startswith("xomni_rl.rewards.") and name not in seen]
    return found.union(*(_imports(name, seen) for name in ours if name not in seen))
