"""`p4torch molecule`: reference data of molecules, and Boltzmann generators."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from p4torch.cli import options
from p4torch.cli.output import running

app = typer.Typer(
    help="Molecules: reference data and Boltzmann generators.", no_args_is_help=True, rich_markup_mode="markdown"
)

#: What can be chosen. It stands here, too, because `--help` and completion should not wait for torch.
METHODS = ("biased", "tempered")
MODELS = ("rnvp", "p4inv", "p4inv-rank8", "p4inv-whole", "spline", "spline-p4inv")
PRESETS = ("check", "quick", "paper")
PLATFORMS = ("Reference", "CPU", "CUDA", "OpenCL", "HIP")

_PDB = Annotated[Path | None, typer.Argument(help="A PDB file with hydrogens. Default: alanine dipeptide.")]
_FORCEFIELD = Annotated[
    str | None,
    typer.Option(help="OpenMM force-field files, with commas. Default: amber99sbildn.xml,amber96_obc.xml."),
]
_SYSTEM_XML = Annotated[
    Path | None, typer.Option(help="An OpenMM System, instead of a force field; the PDB names its atoms.")
]
_WORKERS = Annotated[int | None, typer.Option(help="Processes at a time. Default: the number of cores.")]
_RESUME = Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder, exactly.")]


@app.command("simulate")
def molecule_simulate(
    pdb: _PDB = None,
    forcefield: _FORCEFIELD = None,
    system_xml: _SYSTEM_XML = None,
    temperature: Annotated[float, typer.Option(help="In K.")] = 300.0,
    method: Annotated[str, options.one_of(*METHODS, help="How.")] = "biased",
    torsions: Annotated[
        str | None,
        typer.Option(help="That are biased: phi, psi, phi:2 (residue 2), 4-6-8-14 (atoms from 0). Default: see above."),
    ] = None,
    walkers: Annotated[int | None, typer.Option(help="Independent trajectories. Default: 4.")] = None,
    held_out: Annotated[int | None, typer.Option(help="Walkers that are kept apart, for tests. Default: 1.")] = None,
    nanoseconds: Annotated[float | None, typer.Option(help="Of each walker (17.5), or of each replica (8).")] = None,
    save_ps: Annotated[float | None, typer.Option(help="Between two frames. Default: 0.1.")] = None,
    adaptation_ns: Annotated[float | None, typer.Option(help="For finding the bias. Default: 1.5.")] = None,
    ess: Annotated[
        float | None, typer.Option(help="Effective share of frames (ESS) that the bias is scaled to. Default: 0.4.")
    ] = None,
    highest: Annotated[
        float | None, typer.Option(help="Highest temperature of the ladders, in K. Default: 600.")
    ] = None,
    replicas: Annotated[int | None, typer.Option(help="Temperatures of a ladder. Default: 5.")] = None,
    ladders: Annotated[int | None, typer.Option(help="Independent ladders. Default: 2.")] = None,
    step_fs: Annotated[float | None, typer.Option(help="Time step. Default: 2; hydrogens weigh 3 Da.")] = None,
    platform: Annotated[str | None, options.one_of(*PLATFORMS, help="OpenMM's. Default: Reference.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of all random numbers. Default: 0.")] = None,
    out: Annotated[Path, typer.Option(help="The run folder.")] = Path("runs/molecule"),
    workers: _WORKERS = None,
    resume: _RESUME = False,
    short: Annotated[bool, typer.Option("--short", help="A little of it, to see that it works.")] = False,
    dry_run: options.DRY_RUN = False,
    verbose: options.VERBOSE = False,
    quiet: options.QUIET = False,
) -> None:
    """Reference data: weighted frames of a molecule from its Boltzmann distribution, by Langevin dynamics.

    biased: a bias on torsions is found, scaled to an ESS and frozen; walkers go on under it, and frames get weights
    that undo it. By default phi of a dipeptide, else every rotatable bond. tempered: replicas at several temperatures
    exchange them, without bias. Ctrl-C leaves checkpoints that `--resume` goes on from.

    Example: `p4torch molecule simulate my.pdb --torsions phi,psi --nanoseconds 20 --out runs/mine`
    """
    with running(verbose=verbose, quiet=quiet) as console:
        options.require_molecules()

        from p4torch.molecules.command import Molecule, make_method, run_simulation

        settings = {
            "torsions": torsions,
            "walkers": walkers,
            "held_out": held_out,
            "nanoseconds": nanoseconds,
            "save_ps": save_ps,
            "adaptation_ns": adaptation_ns,
            "ess": ess,
            "highest": highest,
            "replicas": replicas,
            "ladders": ladders,
            "step_fs": step_fs,
            "platform": platform,
            "seed": seed,
        }
        chosen = make_method(method, settings, short=short)
        which = Molecule(pdb, options.names(forcefield), system_xml, temperature)
        run_simulation(which, chosen, out, workers, console, resume=resume, dry_run=dry_run)


@app.command("fit")
def molecule_fit(
    pdb: _PDB = None,
    forcefield: _FORCEFIELD = None,
    system_xml: _SYSTEM_XML = None,
    temperature: Annotated[float, typer.Option(help="In K.")] = 300.0,
    models: Annotated[
        str, options.some_of(*MODELS, help="Kinds of flow, with commas, p4inv of any rank")
    ] = "spline-p4inv",
    preset: Annotated[
        str,
        options.one_of(*PRESETS, help="check: about a minute, quick: ten or so, paper: an hour or more."),
    ] = "quick",
    data: Annotated[
        Path | None, typer.Option(help="The folder of a finished simulation. Default: one is made in the run folder.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Of weights and batches, with commas.")] = "0",
    likelihood_steps: Annotated[int | None, typer.Option(help="Instead of the preset's; 0 for none.")] = None,
    force_steps: Annotated[int | None, typer.Option(help="Instead of the preset's; 0 for none.")] = None,
    energy_steps: Annotated[int | None, typer.Option(help="Instead of the preset's; 0 for none.")] = None,
    merge_every: Annotated[
        int | None, typer.Option(help="Steps between merges of perturbed layers. Default: 20; 1,000 for p4inv-whole.")
    ] = None,
    perturbation_rate: Annotated[
        float | None,
        typer.Option(help="Learning rate of perturbations, in learning rates of all else. Default: 0.1 / √rank."),
    ] = None,
    samples: Annotated[int | None, typer.Option(help="That a model is judged by. Default: 200,000.")] = None,
    out: Annotated[Path, typer.Option(help="The run folder.")] = Path("runs/generator"),
    workers: _WORKERS = None,
    resume: _RESUME = False,
    dry_run: options.DRY_RUN = False,
    verbose: options.VERBOSE = False,
    quiet: options.QUIET = False,
) -> None:
    """Boltzmann generators: simulate a molecule, train flows on it: by the likelihood of frames, and by the
    forces at samples, or their energies.

    Time and energy evaluations are estimated before it starts. It can be stopped or killed at any moment; `--resume`
    goes on from the last checkpoints, also with phases that were not asked for before, behind those that were.

    Example: `p4torch molecule fit my.pdb --forcefield amber14-all.xml,implicit/gbn2.xml --temperature 310`
    """
    with running(verbose=verbose, quiet=quiet) as console:
        options.require_molecules()
        options.require("safetensors")

        from p4torch.molecules.command import Molecule
        from p4torch.molecules.generator.command import FitOptions, run_fit

        fit_options = FitOptions(
            models=options.names(models) or (),
            preset=preset,
            seeds=options.integers(seeds) or (),
            likelihood_steps=likelihood_steps,
            force_steps=force_steps,
            energy_steps=energy_steps,
            merge_every=merge_every,
            perturbation_rate=perturbation_rate,
            data=data,
            samples=samples,
        )
        which = Molecule(pdb, options.names(forcefield), system_xml, temperature)
        run_fit(which, fit_options, out, workers, console, resume=resume, dry_run=dry_run)


@app.command("sample")
def molecule_sample(
    weights: Annotated[
        Path | None,
        typer.Argument(help="A generator.safetensors. Default: alanine dipeptide's, a part of the package."),
    ] = None,
    count: Annotated[int, typer.Option(help="How many samples.")] = 10_000,
    pdb: Annotated[Path | None, typer.Option(help="The molecule. Default: alanine dipeptide.")] = None,
    forcefield: _FORCEFIELD = None,
    system_xml: _SYSTEM_XML = None,
    temperature: Annotated[float, typer.Option(help="In K, that it was trained for.")] = 300.0,
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 0,
    out: Annotated[Path, typer.Option(help="The folder for frames and figures.")] = Path("runs/samples"),
    verbose: options.VERBOSE = False,
    quiet: options.QUIET = False,
) -> None:
    """Draw from a trained generator: weighted frames, frames of equal weight, and what they are worth.

    Example: `p4torch molecule sample --count 20000 --out runs/samples`
    """
    with running(verbose=verbose, quiet=quiet) as console:
        options.require_molecules()
        options.require("safetensors")

        from p4torch.molecules.command import Molecule
        from p4torch.molecules.generator.sampling import run_sampling

        which = Molecule(pdb, options.names(forcefield), system_xml, temperature)
        run_sampling(weights, which, count, seed, out, console)


@app.command("resample")
def molecule_resample(
    run: Annotated[Path, typer.Argument(help="The folder of a finished simulation.")],
    out: Annotated[Path, typer.Argument(help="The DCD file to write.")],
    frames: Annotated[int, typer.Option(help="How many.")] = 100_000,
    part: Annotated[str, typer.Option(help="train, held_out, or a temperature such as 300K.")] = "train",
    seed: Annotated[int, typer.Option(help="Of the choice.")] = 0,
    verbose: options.VERBOSE = False,
    quiet: options.QUIET = False,
) -> None:
    """Frames of equal weight, out of weighted ones.

    Example: `p4torch molecule resample runs/molecule training.dcd --frames 200000`
    """
    with running(verbose=verbose, quiet=quiet) as console:
        options.require_molecules()

        from p4torch.molecules.command import run_resampling

        run_resampling(run, part, frames, seed, out, console)


@app.command("noise")
def molecule_noise(
    pdb: _PDB = None,
    forcefield: _FORCEFIELD = None,
    system_xml: _SYSTEM_XML = None,
    temperatures: Annotated[str, typer.Option(help="In K, with commas between them.")] = "300,600,1000",
    sigma: Annotated[float, typer.Option(help="Standard deviation of the noise on every coordinate, in nm.")] = 0.004,
    nanoseconds: Annotated[float, typer.Option(help="Of plain Langevin dynamics at each temperature.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of all random numbers.")] = 0,
    out: Annotated[Path, typer.Option(help="The run folder.")] = Path("runs/noise"),
    workers: _WORKERS = None,
    resume: _RESUME = False,
    verbose: options.VERBOSE = False,
    quiet: options.QUIET = False,
) -> None:
    """The noise baseline: mean energies of simulated frames, and of the same frames with noise on them.

    Example: `p4torch molecule noise --temperatures 300,1000 --sigma 0.002`
    """
    with running(verbose=verbose, quiet=quiet) as console:
        options.require_molecules()

        from p4torch.molecules.command import Molecule, run_noise
        from p4torch.molecules.simulation.noise import NoiseRun

        kelvins = options.numbers(temperatures, "temperatures") or ()
        which = Molecule(pdb, options.names(forcefield), system_xml)
        run = NoiseRun(kelvins, sigma, nanoseconds, seed=seed)
        run_noise(which, run, out, workers, console, resume=resume)
