"""`transfer-plan`: how much memory a run will need, in seconds, without GPU, weights, data or network."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transfer_run.cli.exits import exit_code
from transfer_run.cli.flags import read_flags
from transfer_run.errors import DONE, UserError

if TYPE_CHECKING:
    from transfer_run.experiment.config.composed import Run
    from transfer_run.tables.choice.asked import Candidate, LeftOut

HELP = """\
transfer-plan [KEY=VALUE ...]    the peak memory of the run that `transfer-run` would carry out with the same words

  transfer-plan method=lst backbone=t5-base dataset=glue/rte dataset.batch_size=100
  transfer-plan method=full backbone=t5-3b dataset=glue/rte hardware.precision=bf16-mixed plan.budget=80GB
  transfer-plan method='*' backbone=t5-base dataset=glue/rte plan.card=l4      all that go with it, best first: what
                             fits, the largest batch of each, and the least change that makes the others fit; lists
                             and names with * of methods, backbones, data sets, any key's values: KEY=a,b

  plan.format=table|json     a report for people (default), or only JSON on standard output
  plan.profile=modern|paper  what a run does today (default), or what papers of 2022 did: eager attention, key/value
                             cache and gradients kept, amounts in their GB of 1000 MiB
  plan.budget=24GB           the largest batch that fits, reported instead of the batch asked for (24GB: 10^9 bytes
                             each, 24GiB: 2^30), with room for plan.context=0.8GiB and plan.cached=0.1 on a GPU
  plan.card=l4               the same for what this card really has
  plan.advice=false          only the plan, not what would lower it (each line of that is a plan by itself)
  plan.devices=8             one of that many devices, with plan.strategy=ddp|fsdp
  plan.expandable_segments=true  under PyTorch's allocator setting of that name
  plan.against="WORDS"       the same run with these words beside it: plan.against="method=full optimizer=sgd"
  plan.picture=FILE.png      of several runs: their peaks by kind, and memory against trained parameters
  hardware=cpu               the memory of a CPU; everything else plans for a GPU

Needs no GPU, no weights, no data and no network: configs carry the architecture and the batch's shapes."""


def main() -> None:
    """Entry point."""
    sys.exit(exit_code(lambda: plan(sys.argv[1:])))


def plan(arguments: Sequence[str]) -> int:
    """Plan the run that the arguments describe and print the answer.

    Raises:
        UserError: the words are wrong; nothing heavy has been imported by then.
    """
    flags = read_flags(arguments)
    if flags.help:
        print(HELP)
        return DONE
    if flags.shell_completion:
        from transfer_run.cli.completion import answer

        answer(flags.words)
        return DONE
    if flags.cfg or flags.info or flags.hydra_help:
        raise UserError(
            "transfer-plan shows plans; the config is transfer-run's to show.",
            where=" ".join(arguments),
            remedy="the same words after transfer-run, with --cfg job or --info",
        )
    from transfer_run.experiment.config.compose import compose, make_importable
    from transfer_run.memory.budget import room
    from transfer_run.tables.choice.asked import several

    if flags.multirun or several(flags.words):
        return _choose(flags.words, flags.config_dir)
    run = compose(flags.words, flags.config_dir)
    if run.config["plan"]["against"]:
        return _compare(run, flags.words, flags.config_dir)
    if run.config["plan"]["picture"]:
        raise UserError("plan.picture is of several runs.", where="plan.picture", remedy="method='*', or KEY=a,b")
    room(run.config["plan"], run.config["hardware"]["accelerator"])  # its words, before the models are imported
    make_importable(run)
    _print(run)
    return DONE


def _print(run: Run) -> None:
    from rich.console import Console

    from transfer_run.experiment.planning.plan import plan_run

    answer = plan_run(run)
    if run.config["plan"]["format"] == "json":
        print(json.dumps(as_json(run, answer), ensure_ascii=False))
        return
    console = Console()
    console.print(answer.report, highlight=False)
    counts = answer.parameters
    console.print(
        f"{counts['trainable']:,} of {counts['total']:,} parameters are trained ({counts['trainable_pct']:.2f} %); "
        f"planned in {answer.seconds:.1f} s",
        highlight=False,
    )
    if not run.config["plan"]["advice"]:
        return
    if (least := answer.least()) is not None:
        from transfer_run.tables.choice.shown import told

        console.print(f"> the batch that was asked for: {told(least.words, least.peak, least.fits)}", highlight=False)
    for line in answer.advise():
        console.print(line, highlight=False, soft_wrap=False)


def _choose(words: Sequence[str], config_dir: str | None) -> int:
    """Plan all combinations of the words."""
    from transfer_run.experiment.config.compose import Composer
    from transfer_run.experiment.config.words import separate
    from transfer_run.tables.choice.asked import candidates

    told, folders = separate(words, config_dir, ())
    found, left = candidates(Composer(folders), told)
    if found[0].run.config["plan"]["against"]:
        raise UserError("plan.against is beside one run.", where="plan.against", remedy="name all of them: KEY=a,b")
    return _several(found, left, " ".join(told))


def _compare(run: Run, words: Sequence[str], config_dir: str | None) -> int:
    """Plan the run and what `plan.against` changes of it."""
    from transfer_run.experiment.config.compose import compose
    from transfer_run.tables.choice.asked import Candidate
    from transfer_run.words import split

    against = str(run.config["plan"]["against"])
    own = [word for word in words if not word.lstrip("+").startswith("plan.against=")]
    other = compose([*own, *split(against, "plan.against", "method=full optimizer=sgd")], config_dir)
    return _several([Candidate("as asked", run), Candidate(against, other)], [], " ".join(own))


def _several(found: Sequence[Candidate], left: list[LeftOut], title: str) -> int:
    """Plan several runs and answer with one table."""
    from rich.console import Console

    from transfer_run.files import user_path
    from transfer_run.memory.budget import room

    begin, config = time.perf_counter(), found[0].run.config
    picture = user_path(config["plan"]["picture"], "plan.picture") if config["plan"]["picture"] else None
    if picture is not None and picture.suffix.lower() != ".png":
        raise UserError(f"{picture} is no PNG.", where="plan.picture", remedy="a path that ends in .png")
    wanted = room(config["plan"], config["hardware"]["accelerator"])
    from transfer_run.tables.choice import shown

    answered = _answered(found, left)
    if config["plan"]["format"] == "json":
        print(json.dumps(shown.as_json(answered, left), ensure_ascii=False))
        return DONE
    paper, console = config["plan"]["profile"] == "paper", Console()
    console.print(shown.as_table(answered, title, paper), highlight=False)
    notes = [f"> {wanted.words}"] if wanted is not None else []
    notes += [*shown.lines(answered, left, paper), f"{len(answered)} planned in {time.perf_counter() - begin:.1f} s"]
    for line in notes:
        console.print(line, highlight=False, markup=False)
    if picture is not None:
        drawn = shown.draw(answered, title, picture, None if wanted is None else wanted.usable)
        some = "" if drawn == len(answered) else f", the first {drawn} of {len(answered)}"
        console.print(f"{picture}{some}", highlight=False, soft_wrap=True)
    return DONE


def _answered(found: Sequence[Candidate], left: list[LeftOut]) -> list[tuple[str, Any]]:
    """What is told of each; those that cannot be planned join `left`."""
    from transfer_run.tables.choice.answer import answers
    from transfer_run.tables.choice.asked import LeftOut

    answered = []
    for count, (each, content) in enumerate(answers(found), start=1):
        print(f"planned {count} of {len(found)}: {each.name}", file=sys.stderr, flush=True)
        if isinstance(content, LeftOut):
            left.append(content)
        else:
            answered.append((each.name, content))
    return answered


def as_json(run: Run, answer: Any) -> dict[str, Any]:
    """The contract's JSON of an `experiment.plan.Plan`; `budget` only when it was asked for, `assumptions` only when
    something was planned otherwise than the words say."""
    content = {
        "schema": 1,
        **{group: run.chosen(group) for group in ("method", "backbone", "dataset")},
        "batch_size": answer.batch_size,
        "profile": run.config["plan"]["profile"],
        "seconds": answer.seconds,
        "memory": answer.memory,
    }
    if answer.budget is not None:
        found = {name: getattr(answer.budget, name) for name in ("batch_size", "peak", "next_peak")}
        content["budget"] = {"bytes": answer.room.bytes, "usable": answer.room.usable, **found}
    if answer.assumptions:
        content["assumptions"] = list(answer.assumptions)
    return content


if __name__ == "__main__":
    main()
