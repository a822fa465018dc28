"""`python -m experiments`. It only reads options: what they mean stands in each experiment's folder."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from p4torch.cli import options
from p4torch.cli.output import running

app = typer.Typer(
    help="The paper's experiments: densities in two dimensions, image patches, linear problems.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="markdown",
)


Seeds = Annotated[str | None, typer.Option(help="Integers, with commas between them. Default: 0,1,2.")]
Workers = Annotated[int | None, typer.Option(help="Trainings at a time. Default: the number of cores.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")]


@app.command()
def density(
    targets: Annotated[str | None, typer.Option(help="Names, with commas between them. Default: all.")] = None,
    models: Annotated[str | None, typer.Option(help="Out of rnvp,p4inv,whole. Default: all.")] = None,
    seeds: Seeds = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps of each training. Default: 8000.")] = None,
    batch: Annotated[int | None, typer.Option(help="Points of each step. Default: 256.")] = None,
    lr: Annotated[float | None, typer.Option(help="One learning rate for all, instead of the tuned ones.")] = None,
    rates: Annotated[
        Path | None, typer.Option(help="A tune.json with learning rates. Default: the one in experiments/density.")
    ] = None,
    every: Annotated[int | None, typer.Option(help="Steps between two merges of P4Inv. Default: 200.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="The run folder. Default: runs/density, runs/tune or runs/demo.")
    ] = None,
    workers: Workers = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder, exactly.")] = False,
    tune: Annotated[
        bool, typer.Option("--tune", help="Find each model's best learning rate (shorter runs, a validation set).")
    ] = False,
    demo: Annotated[
        bool, typer.Option("--demo", help="Two targets, one seed: a few minutes. Overwrites the demo before it.")
    ] = False,
    short: Annotated[bool, typer.Option("--short", help="With --demo: half a minute, to see that it works.")] = False,
    show: Annotated[bool, typer.Option("--list", help="Show targets and models, and stop.")] = False,
) -> None:
    """Density estimation in two dimensions: P4Inv against RealNVP.

    Trains both flows, with as many parameters, on densities that are known exactly. Measures KL(p‖q) and leakage, the
    share of samples where the true density is below 1e-3 of its maximum: the bridges between the modes, as a number.
    Ctrl-C leaves checkpoints that `--resume` goes on from.

    Example: `python -m experiments density --targets eight-gaussians,rings --seeds 0 --steps 5000 --out runs/two`
    """
    with running() as console:
        options.require("matplotlib", "rich", "safetensors")
        from experiments.command import execute
        from experiments.density.run import before, work
        from experiments.density.settings import listing, resolve, run_kind

        if show:
            typer.echo(listing())
            return
        overrides = {
            "targets": options.names(targets),
            "models": options.names(models),
            "seeds": options.integers(seeds),
            "steps": steps,
            "batch": batch,
            "every": every,
            "lr": lr,
            "rates": rates,
        }
        kind = run_kind(tune, demo, short)
        folder = out or Path("runs") / kind
        execute(
            partial(resolve, kind=kind, short=short),
            work,
            overrides,
            folder,
            workers,
            console,
            resume=resume,
            before=partial(before, folder, console, resume),
        )


@app.command()
def patches(
    models: Annotated[
        str | None, typer.Option(help="Out of p4inv,blocks,triangular,dense,lu,relative,fixed. Default: all.")
    ] = None,
    ranks: Annotated[str | None, typer.Option(help="Of P4Inv. Default: 1,2,4,8.")] = None,
    every: Annotated[str | None, typer.Option(help="Merge intervals of P4Inv, in steps. Default: 10,50,200.")] = None,
    directions: Annotated[str | None, typer.Option(help="Of P4Inv: random, gradient. Default: both.")] = None,
    blocks: Annotated[str | None, typer.Option(help="Of P4Inv; 63 is one of all. Default: 63,21.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Integers, with commas between them. Default: 0,1.")] = None,
    lr: Annotated[
        str | None,
        typer.Option(help="The learning rates that are tried; one alone is taken. Default: 0.001,0.003,0.01,0.03,0.1."),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps of each training. Default: 3000.")] = None,
    tune_steps: Annotated[
        int | None, typer.Option(help="The same, while learning rates are tried. Default: 500.")
    ] = None,
    optimizer_state: Annotated[
        str | None, typer.Option(help="What merges do to Adam's memory. Default: transport.")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Patches of each step. Default: 256.")] = None,
    layers: Annotated[int | None, typer.Option(help="Linear layers of the flow. Default: 6.")] = None,
    out: Annotated[Path, typer.Option(help="The run folder.")] = Path("runs/patches"),
    workers: Workers = None,
    resume: Resume = False,
    short: Annotated[bool, typer.Option("--short", help="A few seconds, to see that it works.")] = False,
) -> None:
    """Density estimation in 63 dimensions, of photographs' patches: which rank, which merge interval?

    The same flow with P4Inv layers and with dense, LU and relative-gradient ones. Finds each one's learning rate on a
    validation set, then trains it, and measures the held-out log-likelihood over steps and over seconds.
    Ctrl-C keeps the trainings that are done; `--resume` makes the others.

    Example: `python -m experiments patches --ranks 2,8 --every 20 --seeds 0 --out runs/ranks`
    """
    with running() as console:
        options.require("matplotlib", "rich", "sklearn")
        from experiments.command import execute
        from experiments.patches.config import resolve
        from experiments.patches.run import work

        overrides = {
            "models": options.names(models),
            "ranks": options.integers(ranks, "ranks"),
            "every": options.integers(every, "every"),
            "directions": options.names(directions),
            "blocks": options.integers(blocks, "blocks"),
            "seeds": options.integers(seeds),
            "learning_rates": options.numbers(lr),
            "steps": steps,
            "tune_steps": tune_steps,
            "optimizer_state": optimizer_state,
            "batch": batch,
            "layers": layers,
        }
        execute(partial(resolve, short=short), work, overrides, out, workers, console, resume=resume)


@app.command()
def linear(
    suites: Annotated[
        str | None,
        typer.Option(help="companion, equal-rate, gap, inverse, cost, with commas between them. Default: all."),
    ] = None,
    seeds: Seeds = None,
    out: Annotated[Path | None, typer.Option(help="The run folder. Default: runs/linear.")] = None,
    workers: Workers = None,
    resume: Resume = False,
    short: Annotated[
        bool, typer.Option("--short", help="A few steps of everything: seconds, to see that it works.")
    ] = False,
    show: Annotated[bool, typer.Option("--list", help="Show suites and targets, and stop.")] = False,
) -> None:
    """Linear problems: train a matrix from I to a target, plain, by P4Inv, and through P4Inv's inverse.

    companion: the three targets of the longer paper. equal-rate: rank 8 against the matrix at one learning rate.
    gap: each method at its own best rate, and which part of the proposed scheme does what. inverse: a rotation through
    the inverse. cost: the time of a step. Ctrl-C keeps the rows that are done, and `--resume` goes on.

    Example: `python -m experiments linear --suites gap,cost --seeds 0 --out runs/gap`
    """
    with running() as console:
        options.require("matplotlib", "rich")
        from experiments.command import execute
        from experiments.linear.run import work
        from experiments.linear.suites import listing, resolve

        if show:
            typer.echo(listing())
            return
        overrides = {"suites": options.names(suites), "seeds": options.integers(seeds)}
        folder = out or Path("runs/linear")
        execute(partial(resolve, short=short), work, overrides, folder, workers, console, resume=resume)
