"""The command line. It only reads options: what they mean stands in `p4torch.experiments` and `p4torch.molecules`."""

from __future__ import annotations

from typing import Annotated

from p4torch import __version__

try:
    import typer
except ModuleNotFoundError as error:
    raise SystemExit('Error: this command needs more than torch: pip install "p4torch[experiments]"') from error

from p4torch.cli import molecule
from p4torch.cli.experiments import density, linear, patches

app = typer.Typer(
    name="p4torch",
    help="Networks that keep their mathematical properties while they train: experiments.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="markdown",
)
for command in (density, patches, linear):
    app.command()(command)
app.add_typer(molecule.app, name="molecule")


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
    """Networks that keep their mathematical properties while they train: experiments."""
