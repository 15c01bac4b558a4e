"""docs/algorithms/ is what the code says: every algorithm has a page, every page is up to date."""

import re
import shutil
from pathlib import Path

import pytest

from xomni_rl.config import compose
from xomni_rl.experiments.algorithm_pages import (
    ASKS,
    DOCS,
    advice,
    arguments_of,
    built,
    card,
    choices,
    linked,
    main,
    measured,
    page,
    parsed,
    plain,
    shared_options,
    table,
    with_tables,
)
from xomni_rl.policies.algorithms.base import COMMON_OPTIONS, NEEDS
from xomni_rl.policies.filters import FILTERS

MAKE = "make it with: python -m xomni_rl.experiments.algorithm_pages"


@pytest.mark.parametrize("name", choices())
def test_page_is_up_to_date(name: str) -> None:
    path = DOCS / f"{name}.md"
    assert path.is_file(), MAKE
    assert path.read_text(encoding="utf-8") == page(name), MAKE


def test_tables_are_up_to_date() -> None:
    for name in ("README.md", "choosing.md"):
        assert (DOCS / name).read_text(encoding="utf-8") == with_tables(DOCS / name), MAKE


def test_every_page_is_of_an_algorithm() -> None:
    assert {path.stem for path in DOCS.glob("*.md")} == {*choices(), "README", "choosing"}
    assert {path.stem for path in (DOCS / "curves").glob("*.png")} <= set(choices())


@pytest.mark.parametrize("name", choices())
def test_page_has_equation_source_options_command_and_metrics(name: str) -> None:
    text = page(name)
    assert text.splitlines()[1] == f"# {name}"
    assert "    A_i " in text or "    L " in text or "with a filter" in text
    assert "**Source.**" in text
    assert f"xomni-rl train algorithm={name}\n" in text
    assert "`approx_kl`" in text
    assert "arXiv:" not in re.sub(r"\[arXiv:[^]]*\]\(https://arxiv.org/abs/[^)]*\)", "", text)  # all are links
    assert "None" not in text  # on the command line it is null


def test_every_metric_of_an_algorithm_is_explained() -> None:
    [section] = re.findall(r"^## Metrics$(.*?)^## ", (DOCS / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    explained = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (.*?) \|", section, re.MULTILINE))))
    used = {metric for name in choices() for metric in measured(built(name))}
    assert used <= explained
    assert {"kl_reference", "sampler_kl", "correction_share", "dual_clip_fraction", "entropy"} <= explained  # by options


def test_advice_names_every_choice_and_shared_options_every_option() -> None:
    rows = [re.findall(r"`(\w+)`", line)[0] for line in advice().splitlines()[2:]]
    assert rows == choices()
    assert [line.split("`")[1] for line in shared_options().splitlines()[2:]] == list(COMMON_OPTIONS)


def test_every_filter_is_explained() -> None:
    text = (DOCS / "choosing.md").read_text(encoding="utf-8")
    assert [name for name in FILTERS if f"| `{name}` |" not in text] == []


def test_every_need_of_an_algorithm_has_words() -> None:
    assert ASKS.keys() == NEEDS


def test_metrics_are_those_the_algorithm_computes() -> None:
    assert measured(built("ppo")) == ["clip_fraction", "approx_kl", "ratio_max_deviation", "value_loss", "explained_variance"]
    assert measured(built("dapo"))[-2:] == ["resampled_share", "resample_rounds"]
    assert "kl_reference" in measured(built("dpo"))
    assert "kl_reference" not in measured(built("grpo"))


def test_check_names_what_is_out_of_date_and_writing_puts_it_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "algorithms"
    shutil.copytree(DOCS, folder)
    assert main(["--check", "--folder", str(folder)]) == 0
    (folder / "grpo.md").write_text("something else\n")
    (folder / "rloo.md").unlink()
    assert main(["--check", "--folder", str(folder)]) == 1
    told = capsys.readouterr().out.splitlines()
    assert told == [f"{folder / 'grpo.md'} is out of date", f"{folder / 'rloo.md'} is out of date"]
    assert main(["--folder", str(folder)]) == 0
    assert (folder / "grpo.md").read_text(encoding="utf-8") == page("grpo", folder)
    assert main(["--check", "--folder", str(folder)]) == 0


def test_curve_is_shown_once_it_is_there(tmp_path: Path) -> None:
    assert "curves/grpo.png" not in page("grpo", tmp_path)
    (tmp_path / "curves").mkdir()
    (tmp_path / "curves" / "grpo.png").touch()
    assert page("grpo", tmp_path).endswith("\n![Held-out curves of grpo](curves/grpo.png)\n")
    assert "curves/" not in page("rloo", tmp_path)


def test_card_joins_the_lines_of_an_entry() -> None:
    assert card("pods")["Expect"].endswith("half of the rollouts in an update at group_size=8.")
    assert card("grpo")["Run"] == "xomni-rl train algorithm=grpo"


def test_docstring_is_text_and_sections() -> None:
    def documented() -> None:
        """What it is.

        Args:
            a, b: of two
                lines.
            c: of one.
        Raises: never.
        Source: arXiv:1234.56789. Departs from it: in
            nothing.
        """

    text, sections = parsed(documented)
    assert text == "What it is."
    assert list(arguments_of(sections["Args"])) == [(["a", "b"], "of two lines."), (["c"], "of one.")]
    assert sections["Source"] == "arXiv:1234.56789. Departs from it: in nothing."
    assert linked("see arXiv:1234.56789.") == "see [arXiv:1234.56789](https://arxiv.org/abs/1234.56789)."


def test_values_are_shown_as_the_command_line_takes_them() -> None:
    values = (None, True, {"keep": 2}, 3e-4, "std")
    assert [plain(value) for value in values] == ["null", "true", "{keep: 2}", "0.0003", "std"]
    options = compose([f"+algorithm.options.filter_options={plain({'keep': 2})}", f"algorithm.options.dual_clip={plain(None)}"])
    assert options.algorithm.options.filter_options == {"keep": 2}
    assert options.algorithm.options.dual_clip is None


def test_cells_of_a_table_may_hold_bars() -> None:
    assert table(("a", "b"), [("|x|", "y")]) == "| a | b |\n| --- | --- |\n| \\|x\\| | y |\n"
