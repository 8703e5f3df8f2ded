"""The command line: every verb of verbs/ and those from outside, and how it ends.

Results go to stdout, progress and errors to stderr. Exit codes: 0 all good, 1 failure, 2 usage or configuration,
3 done but some inputs were rejected, 4 over the limit of rejected inputs, 5 integrity broken, 130 interrupted.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from typer.exceptions import TyperException

from ich_ray import __version__, progress, terminal
from ich_ray.errors import IchRayError, Interrupted
from ich_ray.notify.given_address import hide_address
from ich_ray.verbs import cluster, data, final, pipeline, plugins, search

__all__ = ["app", "call", "main"]

_INTERRUPTED = "interrupted; nothing finished is lost, run the same command again to go on"


def _print_version(wanted: bool) -> None:
    if wanted:
        terminal.print_line(f"ich-ray {__version__}")
        raise typer.Exit


app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Find, train, calibrate and check the best intracranial-haemorrhage detector for your head-CT slices.",
)


@app.callback(epilog="Add --debug to see where an unexpected error came from.")
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version


def _add(name: str, verb: plugins.Verb) -> None:
    app.command(name)(plugins.with_flags(name, verb))


for _group in (pipeline, data, search, final, cluster):
    for _verb in _group.VERBS:
        _add(_verb.__name__.replace("_", "-"), _verb)
for _name, _verb in plugins.usable(plugins.VERBS).items():
    _add(_name, _verb)


def main() -> None:
    """Entry point: every mistake of a user ends as one line on stderr and an exit code."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    hide_address(arguments)
    terminal.guard_libraries()
    progress.show()
    try:
        code = call([argument for argument in arguments if argument != "--debug"], debug)
    except Exception as error:  # noqa: BLE001  (with --debug; Typer has taken `sys.excepthook`)
        terminal.print_traceback(error)
        code = 1
    sys.exit(code)


def call(arguments: list[str], debug: bool = False) -> int:
    """Run one command line and return its exit code; with `debug`, errors are raised."""
    try:
        code = int(app(args=arguments, prog_name="ich-ray", standalone_mode=False) or 0)
        # Typer returns what a shell makes of SIGINT in place of a KeyboardInterrupt.
        return _complain(_INTERRUPTED, code) if code == Interrupted.exit_code else code
    except IchRayError as error:
        if debug:
            raise
        return _complain(str(error), error.exit_code)
    except TyperException as error:
        if not arguments:  # the message is the help
            for line in error.format_message().split("\n"):
                terminal.print_aside(line)
            return 2
        return _complain(" ".join(error.format_message().split()), 2)  # choices stand on lines of their own
    except (typer.Abort, KeyboardInterrupt):
        return _complain(_INTERRUPTED, Interrupted.exit_code)
    except Exception as error:
        # The last line of defense: a traceback is for --debug.
        if debug:
            raise
        return _complain(f"unexpected {type(error).__name__}: {error}; add --debug for the traceback", 1)


def _complain(message: str, code: int) -> int:
    terminal.complain(message)
    return code


if __name__ == "__main__":
    main()
