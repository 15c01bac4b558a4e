"""The batched environment: one model for all slots, one decoding and one scoring call for all that finish together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from xomni_rl.envs.episodes import Episodes, Info, whole_numbers
from xomni_rl.envs.options import DEFAULT_REWARD, PromptsOption, RewardOption, StackOption
from xomni_rl.envs.task import build_task
from xomni_rl.envs.text_to_image import checked_render_mode
from xomni_rl.prompts import Prompt
from xomni_rl.stack.family import ImageStack
from xomni_rl.stack.sampler import SamplingConfig

Observations = dict[str, np.ndarray]


class TextToImageVectorEnv(VectorEnv[Observations, np.ndarray, np.ndarray]):
    """`num_envs` slots of `TextToImageEnv` that step together; slot i seeded with s + i does what that one does.

    Observations, rewards and flags are stacked over slots; `info` follows Gymnasium's convention (every key has an
    array and a mask `_key`), where numbers of slots without a value are NaN.

    Args:
        num_envs: N, how many slots.
        autoreset_mode: what happens to a slot whose episode is over. "NextStep" (Gymnasium's default): the next step
            ignores its action and begins an episode. "SameStep": the same step does, and the last observation and info
            are `final_obs` and `final_info`. "Disabled": the caller resets with `options={"reset_mask": bool [N]}`.
        max_episode_steps: truncates episodes after so many tokens; None = never.
        Everything else is as in `TextToImageEnv`.
    Raises: ValueError for no slots, a limit below 1 or an unknown mode, besides what `TextToImageEnv` raises.
    """

    metadata: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        "render_modes": ["rgb_array"],
        "render_fps": 12,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        stack: StackOption = "embedded",
        prompts: PromptsOption = "signs",
        reward: RewardOption = DEFAULT_REWARD,
        size: tuple[int, int] | None = None,
        sampling: SamplingConfig | dict[str, Any] | None = None,
        reward_at: Sequence[int] = (),
        max_prompt_tokens: int | None = None,
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        max_episode_steps: int | None = None,
    ) -> None:
        if num_envs < 1 or (max_episode_steps is not None and max_episode_steps < 1):
            raise ValueError(f"num_envs and max_episode_steps start at 1, got {num_envs} and {max_episode_steps}")
        self.num_envs = num_envs
        self.render_mode = checked_render_mode(render_mode, self.metadata)
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}  # type: ignore[misc]
        self.max_episode_steps = max_episode_steps
        self.task = build_task(stack, prompts, reward, size, sampling, reward_at, max_prompt_tokens)
        self.single_observation_space = self.task.observation_space()
        self.single_action_space = self.task.action_space()
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._episodes = Episodes(self.task, num_envs)
        self._over = np.zeros(num_envs, dtype=bool)
        self._random: list[np.random.Generator | None] = [None] * num_envs

    @property
    def stack(self) -> ImageStack:
        """The generative stack behind all slots."""
        return self.task.stack

    @property
    def prompts(self) -> list[Prompt | None]:
        """The running episodes' prompts; None in a slot before its first reset."""
        return list(self._episodes.prompts)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, Any]]:
        """Begins episodes in all slots.

        Args:
            seed: slot i is seeded with seed + i, or with the i-th entry of a list.
            options: `prompts` chooses the N prompts (each a `Prompt`, a text, a position, or None = a random one);
                `reset_mask`, bool [N], resets only those slots.
        Raises: ValueError for a list or mask of another length; TypeError for a mask that is not a boolean array.
        """
        super().reset(seed=seed if isinstance(seed, int) else None)
        options = options or {}
        slots = np.flatnonzero(self._reset_mask(options.get("reset_mask")))
        seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else seed
        self._seed(slots, self._per_slot("seed", seeds))
        infos = self._begin(slots, self._per_slot("options['prompts']", options.get("prompts")))
        return self._observations(), stacked_infos(infos, self.num_envs)

    def step(self, actions: np.ndarray) -> tuple[Observations, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Places one image token in every slot; finished slots are decoded and scored in one call.

        Args:
            actions: int64 [N]; entries of slots that are about to be reset are ignored.
        Returns: observations, rewards float64 [N], terminated bool [N], truncated bool [N], infos.
        Raises: ValueError for another number of actions; InvalidAction, ResetNeeded and RewardError as in a single one.
        """
        actions = whole_numbers(actions)
        if actions.shape != (self.num_envs,):
            raise ValueError(f"actions must have shape [{self.num_envs}], got {list(actions.shape)}")
        waiting = self._over & (self.autoreset_mode is AutoresetMode.NEXT_STEP)
        live, rewards = np.flatnonzero(~waiting), np.zeros(self.num_envs, dtype=np.float64)
        rewards[live], infos = self._episodes.place(live, actions[live])
        terminated = self._episodes.finished & ~waiting
        truncated = np.zeros(self.num_envs, dtype=bool)
        if self.max_episode_steps is not None:
            truncated = (self._episodes.steps >= self.max_episode_steps) & ~terminated & ~waiting
        self._over = terminated | truncated
        final: dict[str, Any] = {}
        starting = np.flatnonzero(waiting)
        if self.autoreset_mode is AutoresetMode.SAME_STEP and self._over.any():
            starting = np.flatnonzero(self._over)
            final = self._final(starting, {int(slot): infos.pop(int(slot), {}) for slot in starting})
        if starting.size:
            infos |= self._begin(starting, None)
        return self._observations(), rewards, terminated, truncated, {**final, **stacked_infos(infos, self.num_envs)}

    def policy_logprobs(self) -> np.ndarray:
        """The stack's own next-token distribution in every slot: log-probabilities float32 [N, V], nats.

        A slot whose episode is over gets the uniform distribution, for its action is not used.

        Raises: gymnasium.error.ResetNeeded before the first reset.
        """
        if (self._episodes.steps < 0).any():
            raise gymnasium.error.ResetNeeded("no episode has begun: call reset() before policy_logprobs()")
        return self._episodes.policy_logprobs()

    def render(self) -> tuple[np.ndarray, ...] | None:
        """The N pictures so far, each uint8 [H, W, 3], grey where nothing is placed; None without a render mode."""
        if self.render_mode is None:
            gymnasium.logger.warn('render() draws nothing: make the environment with render_mode="rgb_array"')
            return None
        return tuple(self._episodes.pictures())

    def _begin(self, slots: np.ndarray, wanted: Sequence[Any] | None) -> dict[int, Info]:
        chosen = [self.task.chosen(self._generator(slot), None if wanted is None else wanted[slot]) for slot in slots]
        self._over[slots] = False
        return self._episodes.begin([int(slot) for slot in slots], chosen)

    def _final(self, slots: np.ndarray, infos: Mapping[int, Info]) -> dict[str, Any]:
        """`final_obs` (an array of single observations) and `final_info` of slots that are reset in the same step."""
        ended = self._episodes.observations(slots)
        observations = np.full(self.num_envs, None, dtype=object)
        for row, slot in enumerate(slots):
            observations[slot] = {key: values[row] for key, values in ended.items()}
        mask = np.isin(np.arange(self.num_envs), slots)
        final_info = stacked_infos(infos, self.num_envs)
        return {"final_obs": observations, "_final_obs": mask, "final_info": final_info, "_final_info": mask.copy()}

    def _observations(self) -> Observations:
        return self._episodes.observations(np.arange(self.num_envs))

    def _reset_mask(self, mask: Any) -> np.ndarray:
        if mask is None:
            return np.ones(self.num_envs, dtype=bool)
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
            raise TypeError(f"options['reset_mask'] must be a boolean array, got {mask!r}")
        if mask.shape != (self.num_envs,) or not mask.any():
            raise ValueError(f"options['reset_mask'] must mark at least one of {self.num_envs} slots, got {mask}")
        return mask

    def _per_slot(self, name: str, values: Sequence[Any] | None) -> Sequence[Any] | None:
        if values is not None and (isinstance(values, str) or len(values) != self.num_envs):
            raise ValueError(f"{name} must have one entry per slot, {self.num_envs} in all, got {values!r}")
        return values

    def _seed(self, slots: np.ndarray, seeds: Sequence[int | None] | None) -> None:
        for slot in slots:
            if seeds is not None and seeds[slot] is not None:
                self._random[slot] = seeding.np_random(seeds[slot])[0]

    def _generator(self, slot: int) -> np.random.Generator:
        generator = self._random[slot]
        if generator is None:
            generator = self._random[slot] = seeding.np_random()[0]
        return generator


def stacked_infos(infos: Mapping[int, Info], num_envs: int) -> dict[str, Any]:
    """Infos of some slots in Gymnasium's batched form: every key has an array over slots and a mask `_key`.

    Numbers fill with NaN, booleans with False, pictures with 0 and anything else with None. `rewards` and `metrics`
    become dictionaries of such arrays.
    """
    stacked: dict[str, Any] = {}
    for key in dict.fromkeys(key for info in infos.values() for key in info):
        held = {slot: info[key] for slot, info in infos.items() if key in info}
        stacked[key] = stacked_infos(held, num_envs) if key in ("rewards", "metrics") else _stacked(held, num_envs)
        stacked[f"_{key}"] = np.isin(np.arange(num_envs), list(held))
    return stacked


def _stacked(held: Mapping[int, Any], num_envs: int) -> np.ndarray:
    first = next(iter(held.values()))
    if isinstance(first, bool | np.bool_):
        array = np.zeros(num_envs, dtype=bool)
    elif isinstance(first, float):
        array = np.full(num_envs, np.nan)
    elif isinstance(first, np.ndarray):
        array = np.zeros((num_envs, *first.shape), dtype=first.dtype)
    else:
        array = np.full(num_envs, None, dtype=object)
    for slot, value in held.items():
        array[slot] = value
    return array
