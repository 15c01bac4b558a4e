"""The command line. `xomni-rl --help` and `xomni-rl list` load neither torch nor transformers."""

from __future__ import annotations

import logging
import os
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from xomni_rl import __version__
from xomni_rl.commands import draw, jobs, listing
from xomni_rl.commands import serve as serving
from xomni_rl.commands import train as training
from xomni_rl.commands.ablate import ablate, compare
from xomni_rl.commands.audit import audit
from xomni_rl.commands.chat import chat
from xomni_rl.commands.errors import friendly_errors
from xomni_rl.commands.evaluate import evaluate
from xomni_rl.commands.plan import plan
from xomni_rl.commands.report import report
from xomni_rl.commands.score import score


class FriendlyGroup(TyperGroup):
    """A group of commands whose errors are sentences."""

    def invoke(self, ctx: Any) -> Any:
        with friendly_errors():
            return super().invoke(ctx)


app = typer.Typer(
    cls=FriendlyGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="XOMNI_RL_TRACEBACK=1 shows the whole traceback of an error. Each command's --help has examples.",
)
RAW = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False, "help_option_names": []}


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"xomni-rl {__version__}")
        raise typer.Exit


@app.callback()
def commands(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True, show_default=False)
    ] = False,
) -> None:
    """Reinforcement learning for discrete autoregressive image generation.

    Examples:

    • xomni-rl train — GRPO on the embedded stack with the OCR reward; ends with the path of report.html

    • xomni-rl train algorithm=dr_grpo seed=1 trainer.steps=50 run=runs/mine

    • xomni-rl ablate algorithm=grpo,dr_grpo seed=0,1,2 run=runs/ablation

    • xomni-rl generate 'a red sign that says "K7AX"' --stack runs/mine --out pictures

    • xomni-rl score pictures --reward ocr
    """


app.command("train", context_settings=RAW, add_help_option=False)(training.train)
app.command("ablate")(ablate)
app.command("plan")(plan)
app.command("compare", context_settings={"ignore_unknown_options": True})(compare)
app.command("report")(report)
app.command("generate")(draw.generate)
app.command("chat")(chat)
app.command("score")(score)
app.command("evaluate")(evaluate)
app.command("serve")(serving.serve)
app.command("pretrain")(jobs.pretrain)
app.command("bench")(jobs.bench)
app.command("audit")(audit)
app.command("list")(listing.list_everything)
app.command("doctor")(jobs.doctor)


def main() -> None:
    """Entry point of `xomni-rl` and `python -m xomni_rl`."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers would draw a bar for every load
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # others import it, and it warns of kernels that nobody asks for
    app(prog_name="xomni-rl")
