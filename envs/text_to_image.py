"""One episode is one image: every action is an image token, and the picture is scored when the last one is placed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium
import numpy as np

from xomni_rl.envs.episodes import Episodes, Info, whole_numbers
from xomni_rl.envs.options import DEFAULT_REWARD, PromptsOption, RewardOption, StackOption
from xomni_rl.envs.task import build_task
from xomni_rl.prompts import Prompt
from xomni_rl.stack.family import ImageStack
from xomni_rl.stack.sampler import SamplingConfig

Observation = dict[str, Any]


class TextToImageEnv(gymnasium.Env[Observation, np.int64]):
    """An image drawn token by token, from left to right and from top to bottom.

    Observation: `Dict` of
        prompt: int64 [L], ids of the prompt in the model's vocabulary, left padded with -1 (so `prompt >= 0` is the
            attention mask). It ends with the token that opens an image.
        tokens: int64 [T], image tokens placed so far; -1 = not yet.
        step: how many are placed, 0 … T.
    Action: `Discrete(V)`, the next image token.
    Reward: 0 until the last token, then the composite's score. With `reward_at` also at those token counts: the picture
        so far is scored and the difference to what was paid before is given, so that the return is the final score in
        any case. A final score that is not applicable to the prompt (NaN) is worth 0; `info["applicable"]` is False.
    Termination: when the last token is placed. Truncation comes only from outside (`max_episode_steps`); an episode cut
        short is not scored.
    Info: `prompt` and `prompt_id` after a reset; where the picture was scored also `score` (NaN = not applicable),
        `applicable`, `failed` (a reward failed and its policy is to drop the sample), `rewards` (component → score),
        `metrics`, `details` (component → why), `read` (text that was read, if a component reads) and `image`.

    Args:
        stack: "embedded", a folder, or a stack of any family to share between environments.
        prompts: name of a prompt set, a `.jsonl` or `.txt` file, a mapping with `set`, `split`, `count`, `seed` and
            `options`, or a list of prompts or texts.
        reward: a composite reward, its configuration, or the name of one reward. Default: `ocr` on one line of text.
        size: (height, width) in px; None = the prompts' own, else the stack's default.
        sampling: temperature, truncation and guidance of `policy_logprobs`; None = the model's own distribution.
        reward_at: token counts, besides the last, at which the picture so far is scored.
        max_prompt_tokens: L; None = the longest of the prompts. More room is needed only for prompts given to `reset`.
        render_mode: "rgb_array" or None.
    Raises: StackError, PromptError, UnknownNameError or ValueError with one sentence on the option that is wrong.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 12}  # type: ignore[misc]

    def __init__(
        self,
        stack: StackOption = "embedded",
        prompts: PromptsOption = "signs",
        reward: RewardOption = DEFAULT_REWARD,
        size: tuple[int, int] | None = None,
        sampling: SamplingConfig | dict[str, Any] | None = None,
        reward_at: Sequence[int] = (),
        max_prompt_tokens: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.render_mode = checked_render_mode(render_mode, self.metadata)
        self.task = build_task(stack, prompts, reward, size, sampling, reward_at, max_prompt_tokens)
        self.observation_space = self.task.observation_space()
        self.action_space = self.task.action_space()
        self._episodes = Episodes(self.task, 1)

    @property
    def stack(self) -> ImageStack:
        """The generative stack behind the environment."""
        return self.task.stack

    @property
    def prompt(self) -> Prompt | None:
        """The running episode's prompt; None before the first reset."""
        return self._episodes.prompts[0]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, Info]:
        """Begins an episode with a random prompt.

        Args:
            seed: seeds the choice of prompts.
            options: `prompt` chooses one: a `Prompt`, a text, or a position in the environment's prompts.
        Raises: ValueError for a prompt that doesn't exist or is too long.
        """
        super().reset(seed=seed)
        chosen = self.task.chosen(self.np_random, (options or {}).get("prompt"))
        infos = self._episodes.begin([0], [chosen])
        return self._observation(), infos[0]

    def step(self, action: np.int64 | int) -> tuple[Observation, float, bool, bool, Info]:
        """Places one image token.

        Raises: gymnasium.error.ResetNeeded after the end; gymnasium.error.InvalidAction for what is no token;
            RewardError if scoring fails and the reward's policy is to stop.
        """
        rewards, infos = self._episodes.place(np.array([0]), whole_numbers(action)[None])
        terminated = bool(self._episodes.finished[0])
        return self._observation(), float(rewards[0]), terminated, False, infos.get(0, {})

    def policy_logprobs(self) -> np.ndarray:
        """The stack's own distribution of the next token: log-probabilities float32 [V], nats, -inf = cut off.

        Stepping with it costs one cached forward pass per token. Draw from it with `draw_tokens`; the same uniforms
        give the same episode as `rollout`.

        Raises: gymnasium.error.ResetNeeded when no episode is running.
        """
        if self._episodes.steps[0] < 0 or self._episodes.finished[0]:
            raise gymnasium.error.ResetNeeded("no episode is running: call reset() before policy_logprobs()")
        logprobs: np.ndarray = self._episodes.policy_logprobs()[0]
        return logprobs

    def render(self) -> np.ndarray | None:
        """The picture so far, uint8 [H, W, 3], grey where nothing is placed yet; None without a render mode."""
        if self.render_mode is None:
            gymnasium.logger.warn('render() draws nothing: make the environment with render_mode="rgb_array"')
            return None
        picture: np.ndarray = self._episodes.pictures()[0]
        return picture

    def _observation(self) -> Observation:
        return {key: values[0] for key, values in self._episodes.observations([0]).items()}


def checked_render_mode(render_mode: str | None, metadata: dict[str, Any]) -> str | None:
    """The mode itself. Raises: ValueError for one that the metadata doesn't list."""
    if render_mode is not None and render_mode not in metadata["render_modes"]:
        raise ValueError(f"unknown render mode {render_mode!r}; known: {', '.join(metadata['render_modes'])}")
    return render_mode
