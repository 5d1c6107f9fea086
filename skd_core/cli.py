"""The command line: `skd_core <command>`. Each command parses, calls one function, prints."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from skd_core.errors import UserError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="Monocular 3D detection learnt without 3D labels.")
eval_app = typer.Typer(no_args_is_help=True, help="Score detections against labels.")
app.add_typer(eval_app, name="eval")


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False) -> None:
    if version:
        from skd_core import __version__

        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Entry point: wrong input ends as one line on stderr and exit code 2."""
    try:
        app()
    except UserError as error:
        print(f"skd_core: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("skd_core: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
