"""The command line ``spin-composer``; everything heavy is imported within the commands."""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

_REPORT_COLUMNS = 120

app = typer.Typer(
    help="Self-play fine-tuning (SPIN) for Composer and llm-foundry.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
_SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True}
data_app = typer.Typer(help="Look at SFT data, and write it as MDS.", no_args_is_help=True)
app.add_typer(data_app, name="data")


def _print_version(wanted: bool) -> None:
    if wanted:
        from spin_composer.versions import installed_version, stack_line

        print(f"spin-composer {installed_version('spin-composer')} ({stack_line()})")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            help="Print the versions of the stack.",
        ),
    ] = False,
) -> None:
    """Take the options that belong to no command."""
    del version  # its callback has ended the process


@app.command(context_settings=_SETTINGS)
def train(
    context: typer.Context,
    yaml: Annotated[str, typer.Argument(help="The run's YAML.")],
) -> None:
    """Train YAML, with key=value overrides; the same as llmfoundry train, but checks first."""
    from spin_composer.train import main

    raise typer.Exit(main([yaml, *context.args]))


@app.command(context_settings=_SETTINGS)
def play(
    context: typer.Context,
    yaml: Annotated[str, typer.Argument(help="The run's YAML.")],
    iteration: Annotated[int, typer.Option(help="Which iteration to play, from 0.")],
    units: Annotated[str, typer.Option(help="a:b, its units a up to b - 1; or all.")] = "all",
) -> None:
    """Make units of a run's self-play store, with key=value overrides, and train nothing."""
    from spin_composer.play_job import play as play_units
    from spin_composer.train import exit_code

    job = lambda: play_units(yaml, context.args, iteration, units)  # noqa: E731
    raise typer.Exit(exit_code(job, yaml))


@app.command()
def report(
    run: Annotated[
        str,
        typer.Argument(help="The run's store (algorithms.spin's store or remote_store), or YAML."),
    ],
    html: Annotated[
        Path | None,
        typer.Option(help="The page; report.html in the store, or here if it is at a URL."),
    ] = None,
    no_html: Annotated[bool, typer.Option("--no-html", help="Write no page.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Also write the curves to this PNG.")] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Write the page again until the run is done.")
    ] = False,
    interval: Annotated[float, typer.Option(min=1, help="Of --watch, in seconds.")] = 30,
) -> None:
    """Print a run's table of iterations, and write its report as one HTML file."""
    from spin_composer.report_command import ReportOptions
    from spin_composer.report_command import report as write_report

    write_report(run, ReportOptions(html, not no_html, plot, watch, interval))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def status(
    context: typer.Context,
    run: Annotated[
        str, typer.Argument(help="The run's YAML, with key=value, or its store's folder or URL.")
    ],
) -> None:
    """Print where a run stands, and what the same command would do next; reads files only."""
    from rich.console import Console

    from spin_composer.report.outline import read_outline
    from spin_composer.report.status import print_status, read_status

    console = Console()
    outline = read_outline(run, context.args)
    if outline.remote is None:
        found = read_status(outline)
    else:
        from spin_composer.store.open import store_at

        with TemporaryDirectory() as folder:
            store = store_at(Path(folder), outline.remote)
            found = read_status(outline, store.fetch_records(Path(folder)))
    print_status(found, Console(width=max(console.width, _REPORT_COLUMNS)))
    broken = [one for one in found.iterations if one.problem]
    if broken:
        from spin_composer.errors import StoreError

        raise typer.Exit(StoreError.exit_code)


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print what this machine has of what runs need: versions, GPUs, memory, disks."""
    from spin_composer.doctor import examine

    examine().show(as_json)


@app.command()
def init(
    sft: Annotated[Path, typer.Argument(help="LLM Foundry's training YAML of an SFT.")],
    model: Annotated[
        str | None, typer.Option(help="The tuned model: a folder or a Hub name.")
    ] = None,
) -> None:
    """Print the SPIN YAML of an SFT's; each change is explained in it and on stderr."""
    from spin_composer.importers.draft import print_draft
    from spin_composer.importers.sft import convert_sft
    from spin_composer.settings.yaml_file import read_text

    print_draft(convert_sft(read_text(sft), str(sft), model))


@app.command("check", context_settings=_SETTINGS)
def check_run(
    context: typer.Context,
    yaml: Annotated[str, typer.Argument(help="The run's YAML.")],
    gpus: Annotated[int | None, typer.Option(min=1, help="GPUs that the run will have.")] = None,
    play_speed: Annotated[
        float | None, typer.Option(min=1e-9, help="Measured tokens/s of play, of all GPUs.")
    ] = None,
    train_speed: Annotated[
        float | None, typer.Option(min=1e-9, help="Measured tokens/s of training, of all GPUs.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print what a run will read, take and write, with key=value; needs no GPU and no weights."""
    from spin_composer.forecast.run import Speeds, forecast_run  # imports Composer
    from spin_composer.settings.yaml import read_yaml, to_mapping

    config = to_mapping(read_yaml(yaml, context.args))
    forecast, rows = forecast_run(config, yaml, gpus, Speeds(play_speed, train_speed))
    forecast.show(as_json)
    rows.raise_for_bad_rows()


@app.command("import-nemo", context_settings=_SETTINGS)
def import_nemo(
    context: typer.Context,
    config: Annotated[Path, typer.Argument(help="NeMo-Aligner's gpt_spin.yaml.")],
    model: Annotated[
        str | None, typer.Option(help="The SFT model: a Hugging Face folder or Hub name.")
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Its tokenizer, if elsewhere.")] = None,
) -> None:
    """Print the SPIN YAML of NeMo-Aligner's, with its key=value; explains each key on stderr."""
    from spin_composer.importers.draft import print_draft
    from spin_composer.importers.nemo import convert_nemo
    from spin_composer.importers.read import read_config

    values = read_config(config, context.args)
    print_draft(convert_nemo(values, str(config), model, tokenizer))


@app.command("import-recipe", context_settings=_SETTINGS)
def import_recipe(
    context: typer.Context,
    recipe: Annotated[Path, typer.Argument(help="uclaml/SPIN's config.yaml, or one like it.")],
    gpus: Annotated[int, typer.Option(min=1, help="Processes that make the recipe's batch.")] = 8,
    iterations: Annotated[int, typer.Option(min=1, help="Iterations; a recipe is one.")] = 3,
) -> None:
    """Print the SPIN YAML of a recipe, with its key=value; explains each key on stderr."""
    from spin_composer.importers.draft import print_draft
    from spin_composer.importers.read import read_config
    from spin_composer.importers.recipe import convert_recipe

    values = read_config(recipe, context.args)
    print_draft(convert_recipe(values, str(recipe), gpus, iterations))


@app.command(context_settings=_SETTINGS)
def judge(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(help="The run's YAML, or a folder of exported models.")],
    data: Annotated[
        str | None, typer.Option(help="Held-out rows; the YAML's if not given.")
    ] = None,
    start: Annotated[str | None, typer.Option(help="Start model; the YAML's if not given.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON in place of a table.")
    ] = False,
) -> None:
    """Measure each iteration's responses to held-out prompts, and name the best.

    Further arguments are key=value: settings of the YAML, or judge.rows=200 and so on.
    """
    from spin_composer.extras import require_judge
    from spin_composer.judge.run import read_run

    require_judge("spin-composer judge")
    judged = read_run(run, context.args, data, start)
    from spin_composer.judge.command import judge_run  # imports torch

    judge_run(judged, as_json)


Source = Annotated[
    str, typer.Argument(help="File, folder, Hugging Face name or MDS; or a run's YAML.")
]
Split = Annotated[str | None, typer.Option(help="Split of the source; train if not given.")]
Subset = Annotated[str | None, typer.Option(help="Subset (config) of a Hugging Face data set.")]
BadRows = Annotated[str | None, typer.Option(help="error: stop at a bad row; skip: leave it out.")]
Preprocess = Annotated[
    str | None,
    typer.Option(help="module:function for each row, or {prompt: column, response: column}."),
]
RemoteCode = Annotated[bool, typer.Option(help="Let the tokenizer run code of its repository.")]


@app.command()
def demo(
    folder: Annotated[
        Path | None,
        typer.Option(
            help="Folder of all that it writes; an earlier demo's is replaced.",
            show_default="runs/demo; runs/demo-small with --small",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the data, the base model and the runs.")] = 17,
    small: Annotated[
        bool,
        typer.Option("--small", help="A smoke test in half a minute: one iteration, few rows."),
    ] = False,
) -> None:
    """Play three iterations on a small world of text, on the CPU, with SFT beside it."""
    if small:
        from spin_composer.demo.small import main
    else:
        from spin_composer.demo.run import main

    main(folder or Path("runs/demo-small" if small else "runs/demo"), seed)


@data_app.command(context_settings=_SETTINGS)
def convert(
    context: typer.Context,
    source: Source,
    destination: Annotated[str, typer.Argument(help="New folder of the MDS data set.")],
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Tokenizer's name or folder: rows are then checked as training does."),
    ] = None,
    split: Split = None,
    subset: Subset = None,
    on_bad_row: BadRows = None,
    preprocessing_fn: Preprocess = None,
    compression: Annotated[str | None, typer.Option(help="Streaming's, e.g. zstd.")] = None,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Write SFT data of any supported format as MDS: of a source, or of a run's YAML.

    Further arguments are key=value: settings of the YAML, or of its dataset block.
    """
    from spin_composer.data.convert import convert_config
    from spin_composer.data_commands import read_arguments

    flags = {"split": split, "subset": subset, "on_bad_row": on_bad_row,
             "preprocessing_fn": preprocessing_fn}  # fmt: skip
    given = read_arguments(source, context.args, flags, tokenizer, trust_remote_code)
    done = convert_config(given.config, destination, given.title, given.tokenizer,
                          given.tokenizer_kwargs, compression)  # fmt: skip
    dropped = sum(done.dropped.values())
    print(f"{done.rows} rows written to {destination}, {dropped} bad ones left out")


@data_app.command(context_settings=_SETTINGS)
def check(
    context: typer.Context,
    source: Source,
    tokenizer: Annotated[
        str | None, typer.Option(help="Tokenizer's name or folder; a YAML has its own.")
    ] = None,
    split: Split = None,
    subset: Subset = None,
    max_seq_len: Annotated[
        int | None, typer.Option(help="Most tokens of a row; 2048 if nothing says otherwise.")
    ] = None,
    max_prompt_len: Annotated[
        int | None, typer.Option(help="Most tokens of a prompt; needed by --truncate-prompt left.")
    ] = None,
    truncate_prompt: Annotated[
        str | None, typer.Option(help="none, or left: cut long prompts.")
    ] = None,
    on_bad_row: BadRows = None,
    preprocessing_fn: Preprocess = None,
    trust_remote_code: RemoteCode = False,
    row: Annotated[int, typer.Option(help="Which kept row to show, from 1.")] = 1,
) -> None:
    """Print what training would read: counts, lengths, drops, an example; of data or of a YAML.

    Further arguments are key=value: settings of the YAML, or of its dataset block.
    """
    from rich.console import Console

    from spin_composer.data_commands import read_arguments

    flags = {"split": split, "subset": subset, "max_seq_len": max_seq_len,
             "max_prompt_len": max_prompt_len, "truncate_prompt": truncate_prompt,
             "on_bad_row": on_bad_row, "preprocessing_fn": preprocessing_fn}  # fmt: skip
    given = read_arguments(source, context.args, flags, tokenizer, trust_remote_code)
    name = given.required_tokenizer()
    from spin_composer.data.check import inspect_config, print_report  # imports numpy

    result = inspect_config(given.config, name, given.tokenizer_kwargs, given.title, row)
    print_report(result, Console())
    result.raise_for_bad_rows()


def main() -> None:
    """Run the command line; what a user can correct is one line on stderr, and an exit code."""
    from spin_composer.errors import explain
    from spin_composer.interrupt import exit_process

    try:
        app()
    except SystemExit as done:
        exit_process(done.code)
    except Exception as error:
        explained = explain(error)
        if explained is None:
            raise
        code, line = explained
        for part in line.splitlines():  # one per problem
            print(f"error: {part}", file=sys.stderr)
        sys.exit(code)
