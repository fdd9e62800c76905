"""The group of commands, in the order in which they are used."""

from __future__ import annotations

import io
import os
import sys

import click

from cqa import __version__
from cqa_fast import claims, job, studies, tools
from cqa_fast.group import ErrorsAsMessages, require_working_directory
from cqa_fast.terminal import open_missing_streams

# How long a thread waits for the others at full load before it sleeps. With OpenMP's own number,
# fifty times this, two jobs on the same cores hold each other up.
_SPINS = "6000"


@click.group(
    cls=ErrorsAsMessages,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="cqa-fast")
def main() -> None:
    """Fine-tune a LoRA on about 100 expert samples, and score texts by log-probability.

    \b
    Try it on the embedded model and data:
      cqa-fast demo
    With your own:
      cqa-fast train --model DIR --data train.jsonl --out run
      cqa-fast score --model DIR --run run --out scores \\
          --pairs literary.jsonl --pairs factual.jsonl
      cqa-fast report scores --run run --out report

    Results go to standard output, progress to standard error.

    \b
    Exit codes:
      0 done      3 data   5 not finite  129, 130, 143 ended by a signal
      2 settings  4 model  6 resources   (SIGHUP, SIGINT, SIGTERM)
    """
    open_missing_streams()
    require_working_directory()
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if "OMP_WAIT_POLICY" not in os.environ:  # read when torch is imported
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a text that the terminal lacks is no error
        sys.stdout.reconfigure(errors="backslashreplace")


for command in (
    job.demo,
    job.validate,
    job.train,
    job.plan,
    job.score,
    job.merge,
    job.report,
    studies.generate,
    studies.lm_eval,
    studies.letters,
    studies.compare,
    studies.power,
    studies.prescreen,
    studies.scale,
    claims.study,
    studies.coverage,
    tools.export,
    tools.convert,
    tools.bench,
    tools.doctor,
):
    main.add_command(command)
