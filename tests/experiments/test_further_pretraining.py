import json
from pathlib import Path

import torch

from xomni_rl.experiments.pretraining.further import further_pretraining
from xomni_rl.experiments.pretraining.recipe import FINISH
from xomni_rl.stack.stack import Stack


def test_stack_is_trained_for_about_the_time_asked_for_and_saved(tmp_path: Path) -> None:
    done = further_pretraining(tmp_path / "more", seconds=1.0, seed=3)
    assert done == json.loads((tmp_path / "more" / "further.json").read_text())
    assert done["steps"] >= 1
    assert done["signs"] == done["steps"] * FINISH.batch
    before, after = (
        Stack.from_pretrained("embedded").model.state_dict(),
        Stack.from_pretrained(tmp_path / "more").model.state_dict(),
    )
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert all(bool(torch.isfinite(value).all()) for value in after.values())
    assert not list((tmp_path / "more").glob("*.writing"))
