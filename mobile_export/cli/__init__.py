"""The command line: parses, calls the steps, prints. One file per verb; nothing here computes."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from types import FrameType
from typing import Annotated, Any

import typer

from mobile_export import __version__
from mobile_export.cli import (
    check,
    coreml,
    doctor,
    evaluate,
    generate,
    inspect,
    onnx,
    phones,
    profile,
    pte,
    push,
    recipes,
    search,
    verify,
)
from mobile_export.cli.options import with_optional_values
from mobile_export.errors import EXIT_BUG, EXIT_USAGE, EXIT_YES, MobileExportError

INTERRUPTED = 130
# typer carries a click of its own and exports no name for the class all its usage errors have in common.
ClickException: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

app = typer.Typer(
    name="mobile-export",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"mobile-export {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Take a trained language model to a phone: quantized, one copy of every weight, checked.

    Example: mobile-export pte smollm2-135m --out out
    """


app.command("pte")(pte.pte)
app.command("onnx")(onnx.onnx)
app.command("coreml")(coreml.coreml)
app.command("inspect")(inspect.inspect)
app.command("verify")(verify.verify)
app.command("generate")(generate.generate)
app.command("eval")(evaluate.evaluate)
app.command("profile")(profile.profile)
app.command("push")(push.push)
app.command("check")(check.check)
app.command("phones")(phones.phones)
app.command("recipes")(recipes.recipes)
app.command("search")(search.search)
app.command("doctor")(doctor.doctor)


def main() -> None:
    """Run the command line and exit with its code; `--debug` anywhere shows the traceback of an error."""
    # Before torch is imported: its OpenMP threads would spin against XNNPACK's pool and ours for the same cores.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    signal.signal(signal.SIGTERM, _interrupted)  # as Ctrl-C: what is half done is undone
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    sys.exit(run(arguments, debug=debug))


def _interrupted(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def run(arguments: list[str], *, debug: bool = False) -> int:
    """Run one command; errors become one line on stderr and an exit code."""
    try:
        arguments = with_optional_values(arguments, profile.OPTIONAL)
        code: int = app(args=arguments, prog_name="mobile-export", standalone_mode=False) or EXIT_YES
        if code == INTERRUPTED:  # what typer makes of Ctrl-C
            raise KeyboardInterrupt
        return code
    except MobileExportError as error:
        if debug:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except ClickException as error:
        return _usage(error)
    except (KeyboardInterrupt, typer.Abort):
        print("error: interrupted; nothing was written", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our output left, and there is nobody to tell
        return 0
    except Exception as error:  # the one place that turns a bug into exit code 70
        if debug:
            traceback.print_exc()
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        print(f"error: bug: {what}; please report it, with the output of the same command and --debug", file=sys.stderr)
        return EXIT_BUG


def _usage(error: Any) -> int:
    """Print a usage error of typer's, or the help where nothing was asked."""
    message = error.format_message()
    if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help text
        print(message, file=sys.stderr)
        return EXIT_USAGE
    place = error.ctx.command_path if getattr(error, "ctx", None) else "mobile-export"
    print(f"error: {place}: {' '.join(message.split()).rstrip('.')}; see {place} --help", file=sys.stderr)
    return EXIT_USAGE
