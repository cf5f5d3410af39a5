"""The command line ``spin-composer``; everything heavy is imported within the commands."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

app = typer.Typer(
    help="Self-play fine-tuning (SPIN) for Composer and llm-foundry.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Look at SFT data, and write it as MDS.", no_args_is_help=True)
app.add_typer(data_app, name="data")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def train(
    context: typer.Context,
    yaml: Annotated[str, typer.Argument(help="The run's YAML.")],
) -> None:
    """Train YAML, with key=value overrides; the same as llmfoundry train, but checks first."""
    from spin_composer.train import main

    raise typer.Exit(main([yaml, *context.args]))


@app.command()
def report(
    store: Annotated[Path, typer.Argument(help="The run's self-play store (spin.store).")],
    plot: Annotated[
        Optional[Path], typer.Option(help="Also write the curves to this PNG.")
    ] = None,
) -> None:
    """Print a run's table of iterations."""
    from rich.console import Console

    from spin_composer.report import draw, print_table, read_books

    books = read_books(store)
    print_table(books, Console())
    if plot is not None:
        draw(books, plot)


@data_app.command()
def convert(
    source: Annotated[str, typer.Argument(help="File, folder, Hugging Face name or MDS.")],
    destination: Annotated[str, typer.Argument(help="New folder of the MDS data set.")],
    split: Annotated[str, typer.Option(help="Split of the source.")] = "train",
) -> None:
    """Write SFT data of any supported format as MDS."""
    from spin_composer.data.convert import convert_dataset

    convert_dataset(source, destination, split=split)


@data_app.command()
def check(
    source: Annotated[str, typer.Argument(help="File, folder, Hugging Face name or MDS.")],
    tokenizer: Annotated[str, typer.Option(help="Tokenizer's name or folder.")],
) -> None:
    """Print what training would read from SFT data: counts, lengths, drops, an example."""
    from rich.console import Console

    from spin_composer.data.check import check_dataset, print_report

    result = check_dataset(source, tokenizer)
    print_report(result, Console())
    result.raise_for_bad_rows()


def main() -> None:
    """Run the command line; bad input is one line on stderr and exit code 2."""
    from spin_composer.errors import InputError, StoreError

    try:
        app()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except StoreError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(3)
