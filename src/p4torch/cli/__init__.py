"""The command line. It only reads options: what they mean stands in `p4torch.molecules`."""

from __future__ import annotations

from typing import Annotated, Any

from p4torch import __version__

try:
    import typer
except ModuleNotFoundError as error:
    raise SystemExit('Error: this command needs more than torch: pip install "p4torch[experiments]"') from error

from typer.core import TyperGroup

from p4torch.cli import doctor, molecule
from p4torch.cli.output import legible


class Group(TyperGroup):
    """The command, whose help and results can be read on any terminal."""

    def main(self, *args: Any, **options: Any) -> Any:
        legible()
        return super().main(*args, **options)


app = typer.Typer(
    name="p4torch",
    cls=Group,
    help="Networks that keep their mathematical properties while they train.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_show_locals=False,
    rich_markup_mode="markdown",
)
app.add_typer(molecule.app, name="molecule")
app.command("doctor")(doctor.doctor)


def _moved(context: typer.Context) -> None:
    """The experiments are no part of the package."""
    new = f"python -m experiments {context.info_name}"
    typer.echo(f"Error: `{context.command_path}` is `{new}` now, in a checkout of the repository", err=True)
    raise typer.Exit(2)


for moved in ("density", "linear", "patches"):
    anything = {"allow_extra_args": True, "ignore_unknown_options": True}
    app.command(moved, hidden=True, add_help_option=False, context_settings=anything)(_moved)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"p4torch {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Networks that keep their mathematical properties while they train."""
