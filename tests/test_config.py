"""Every YAML composes, says what it is for, and what is wrong in a configuration is one sentence."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from xomni_rl.config import (
    REWARD,
    SCHEMA,
    ConfigError,
    Each,
    Rule,
    compose,
    known_keys,
    register_resolvers,
    reward_config,
    validate,
)
from xomni_rl.rewards.base import rewards
from xomni_rl.rewards.composite import COMPONENT_KEYS, KEYS, build_composite

CONF = Path(__file__).parents[1] / "experiments" / "conf"
CHOICES = sorted(path.relative_to(CONF) for path in CONF.glob("*/*.yaml"))
FILLED = {f"model={name}": ["model.path=somewhere"] for name in ("folder", "janus_pro", "emu3")}
FILLED |= {"prompts=file": ["prompts.options.path=prompts.jsonl"]}
BY_PATH = ("table", "datasets", "geneval", "longtext_bench", "dpg_bench")
FILLED |= {f"prompts={name}": ["prompts.options.path=somewhere"] for name in BY_PATH}
FILLED["prompts=paper"] = [f"prompts.options.sources.{name}.options.path=x" for name in ("aesthetic", "natural")]
FILLED["experiment=xomni_paper"] = FILLED["prompts=paper"]


def changed(key: str, value: Any) -> dict[str, Any]:
    """The default configuration with one value changed, as plain values."""
    config = compose()
    OmegaConf.update(config, key, value, merge=False, force_add=True)
    plain = OmegaConf.to_container(config)
    assert isinstance(plain, dict)
    return {str(name): entry for name, entry in plain.items()}


def leaves(schema: Mapping[str, Any], prefix: str = "") -> dict[str, Rule]:
    """Dotted key → rule of every key that must be there."""
    found: dict[str, Rule] = {}
    for name, entry in schema.items():
        if isinstance(entry, Rule):
            found |= {prefix + name: entry} if entry.required else {}
        elif not isinstance(entry, Each):
            found |= leaves(entry, f"{prefix}{name}.")
    return found


@pytest.mark.parametrize("path", CHOICES, ids=str)
def test_every_choice_composes(path: Path):
    choice = f"{path.parent}={path.stem}"
    assert compose([choice, *FILLED.get(choice, [])])


@pytest.mark.parametrize("path", [Path("config.yaml"), *CHOICES], ids=str)
def test_every_file_begins_with_its_card(path: Path):
    head = (CONF / path).read_text().splitlines()
    words = [line.removeprefix("# ").partition(":")[0] for line in head if line.startswith("# ") and ":" in line]
    assert [word for word in words if word in ("Question", "Run", "Expect", "Hardware", "Override")] == [
        "Question",
        "Run",
        "Expect",
        "Hardware",
        "Override",
    ]


def test_default_has_the_names_scripts_rely_on():
    config = compose(["run=somewhere", "resume=elsewhere", "seed=3", "trainer.steps=7", "trainer.checkpoint_every=2"])
    assert (config.run, config.resume, config.seed) == ("somewhere", "elsewhere", 3)
    assert (config.trainer.steps, config.trainer.checkpoint_every) == (7, 2)
    assert compose().run is None


def test_every_trainer_variant_has_the_keys_of_the_default():
    for path in CHOICES:
        if path.parent.name == "trainer":
            assert compose([f"trainer={path.stem}"]).trainer.keys() == compose().trainer.keys()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "reward.gates={ocr: 'clip > 1'}",
            r'unknown configuration key "reward\.gates\.ocr";.*to add it on purpose: \+reward\.gates=',
        ),
        ("trainer.stpes=3", r'unknown configuration key "trainer\.stpes"; nearest: trainer\.steps,.*: \+trainer\.stpes=3'),
        ("algoritm=grpo", 'unknown configuration key "algoritm"; nearest: algorithm'),
        ("algorithm=grop", r'unknown choice of group algorithm, "grop"; nearest: grpo, '),
        ("clip_low=0.1", r'unknown configuration key "clip_low"; nearest: .*algorithm\.options\.clip_low'),
        ("~trainer.stpes", r'unknown configuration key "trainer\.stpes"; nearest: trainer\.steps'),
        ("+extra.key=1", 'unknown configuration key "extra"; known: algorithm, model,'),
        ("+trainer.extra=1", r'unknown configuration key "trainer\.extra";'),
        ("trainer.steps=[1", "an override cannot be read"),
        ("model=folder", r"model\.path must be given: add model\.path=VALUE"),
        ("trainer.steps=0", r"trainer\.steps must be a whole number of at least 1, but is 0; override it with trainer\.steps="),
        ("trainer.steps=2.5", r"trainer\.steps must be a whole number of at least 1, but is 2\.5"),
        ("trainer.steps=true", r"trainer\.steps must be a whole number of at least 1, but is True"),
        ("trainer.steps=null", r"trainer\.steps must be a whole number of at least 1, but is None"),
        ("trainer.group_size=-1", r"trainer\.group_size must be"),
        ("trainer.learning_rate=fast", r"trainer\.learning_rate must be a number of at least 0, but is 'fast'"),
        ("trainer.learning_rate=nan", r"trainer\.learning_rate must be a number"),
        ("trainer.sampling.top_p=1.5", r"top_p must be a number above 0 and at most 1, but is 1\.5"),
        ("trainer.sampling.temperature=0", r"trainer\.sampling\.temperature must be a number above 0, but is 0"),
        ("trainer.max_seconds=0", r"trainer\.max_seconds must be a number above 0 or null, but is 0"),
        ("trainer.save_images=some", r"trainer\.save_images must be one of all, none, but is 'some'"),
        ("trainer.mixed_precision=bf61", r"mixed_precision must be one of no, bf16, fp16, but is 'bf61' \(nearest: bf16\)"),
        ("model.gradient_checkpointing=1", r"model\.gradient_checkpointing must be true or false, but is 1"),
        ("reward.on_failure=dorp", r"reward\.on_failure must be one of stop, drop, but is 'dorp' \(nearest: drop\)"),
        ("reward.components.ocr.weight=much", r"reward\.components\.ocr\.weight must be a number, but is 'much'"),
        ("+reward.components.ocr.wieght=1", r'"reward\.components\.ocr\.wieght"; nearest: reward\.components\.ocr\.weight'),
        ("reward=orc", r'unknown choice of group reward, "orc"; nearest: ocr.*; known: .*embedded.*ocr_exact'),
        ("reward=", 'unknown choice of group reward, "";'),
        ("+reward.components.ocr.cap=high", r"reward\.components\.ocr\.cap must be a number or null, but is 'high'"),
        ("+reward.components.ocr.schedule=3", r"components\.ocr\.schedule must be a mapping or null, but is 3"),
        ("+reward.components.ocr.normalisation=grup", r"ocr\.normalisation must be one of .* \(nearest: group\)"),
        ("reward.concurrency=0", r"reward\.concurrency must be a whole number of at least 1 or null, but is 0"),
        ("~reward.components.ocr", r"reward\.components is empty; name at least one"),
        ("~trainer.steps", r"configuration key trainer\.steps is missing"),
        ("trainer.alarms=3", r"trainer\.alarms must be a mapping of keys to values, but is 3"),
        ("algorithm.options=[1]", r"the override algorithm\.options=\[1\] is of another kind"),
        ("run=${nowhere}", "nowhere"),
    ],
)
def test_wrong_override_is_one_sentence_with_key_value_and_remedy(override: str, message: str):
    with pytest.raises(ConfigError, match=message) as caught:
        compose([override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["trainer.max_seconds=null", "trainer.evaluate_every=null", "trainer.checkpoint_every=null"],
        ["trainer.evaluation.reward=null"],
        ["+reward.components.red={reward: 'mine:redness', weight: 0, options: {anything: [1, 2]}}"],
        ['+reward.gates={ocr: "clip > 0.2"}', "prompts.heldout_count=0"],
        ["+reward.components.ocr.schedule={0: 1.0, 200: 0.2}", "+reward.components.ocr.when='language == zh'"],
        ["+reward.components.sharpness={weight: 0}", "reward.concurrency=1"],
        ["algorithm.name=mine:algorithm", "~algorithm.options", "+algorithm.options={temperature: 3}"],
    ],
)
def test_possible_overrides_compose(overrides: list[str]):
    assert compose(overrides)


def test_plain_mapping_is_validated_too():
    assert validate(changed("trainer.steps", 3))["trainer"]["steps"] == 3
    with pytest.raises(ConfigError, match=r"trainer\.steps must be a whole number"):
        validate(changed("trainer.steps", "many"))


def test_schema_and_default_configuration_have_the_same_keys():
    assert set(leaves(SCHEMA)) <= set(known_keys())
    with pytest.raises(ConfigError, match="unknown configuration key"):
        validate(changed("trainer.surprise", 1))


@pytest.mark.parametrize("key", sorted(leaves(SCHEMA)))
def test_every_key_refuses_a_value_of_another_type(key: str):
    wrong = [1, 2] if leaves(SCHEMA)[key].kind in ("text", "mapping", "switch") else "wrong"
    with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
        validate(changed(key, wrong))


def test_sweep_folders_have_names_a_file_system_takes():
    register_resolvers()
    config = OmegaConf.create(
        {"name": "${xomni_rl.folder_name:3,'seed=1,model.path=/a b/c'}", "given": "${xomni_rl.sweep_folder:x}"}
    )
    assert config.name == "3_seed=1,model.path=-a-b-c"
    assert config.given == "x"


@pytest.mark.parametrize("name", rewards.names())
def test_registered_reward_is_a_choice_without_a_file(name: str):
    (component,) = reward_config(name)["components"].values()
    # A file of that name (ocr) may set options; the reward and its weight are the same.
    assert (component["reward"], component["weight"]) == (name, 1.0)


@pytest.mark.parametrize(
    ("choice", "component"),
    [
        ("my_module:brightness", "brightness"),
        ("my.own.module:Rewards.bright", "bright"),
        ("folder/file.py:brightness", "brightness"),
        ("/somewhere/file.py:brightness", "brightness"),
    ],
)
def test_object_of_a_module_is_a_choice_named_after_it(choice: str, component: str):
    assert reward_config(choice) == {
        "components": {component: {"reward": choice, "weight": 1.0, "options": {}}},
        "normalisation": "none",
        "gates": {},
        "on_failure": "stop",
        "concurrency": None,
    }


def test_component_of_a_reward_with_a_dot_can_be_overridden():
    found = reward_config("hpsv2.1", ["reward.components.hpsv2_1.weight=0.5"])
    assert found["components"] == {"hpsv2_1": {"reward": "hpsv2.1", "weight": 0.5, "options": {}}}


@pytest.mark.parametrize("path", [path for path in CHOICES if path.parent.name == "reward"], ids=str)
def test_reward_of_every_file_can_be_built_without_its_weights(path: Path):
    config = reward_config(path.stem)
    assert build_composite(config).names == tuple(config["components"])
    assert set(config) == set(KEYS)


def test_weight_of_a_component_is_overridden_in_one_line():
    found = reward_config("embedded", ["reward.components.ocr.weight=0.5", "+reward.components.ocr.cap=0.9"])
    part = build_composite(found).parts[0]
    assert (part.name, part.weight, part.cap) == ("ocr", 0.5, 0.9)


def test_override_that_is_not_of_the_reward_is_refused():
    with pytest.raises(ConfigError, match='the override "seed=1" is not of the reward'):
        reward_config("ocr", ["seed=1"])


def test_schema_of_the_reward_has_the_keys_that_are_built():
    components = REWARD["components"]
    assert isinstance(components, Each)
    assert isinstance(components.schema, Mapping)
    assert (tuple(REWARD), tuple(components.schema)) == (KEYS, COMPONENT_KEYS)
