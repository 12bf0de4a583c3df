"""`autoconv run`."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from typing import TYPE_CHECKING

import click

from autoconv.cli._common import Command, Handover
from autoconv.settings import Policy

if TYPE_CHECKING:
    from collections.abc import Collection

    from autoconv.problem import Problem


class _ProgramCommand(Command):
    """A command whose arguments end where those of a program begin."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As of any command, but that everything after `-m MODULE` is the module's, as of `python`."""
        for place, arg in enumerate(args):
            if arg == "--" or (not arg.startswith("-") and args[place - 1 : place] != ["--policy"]):
                break
            if arg.startswith("-m"):
                end = place + 1 if len(arg) > 2 else place + 2
                args = [*args[:end], "--", *args[end:]]
                break
        return super().parse_args(ctx, args)


@click.command(
    cls=_ProgramCommand,
    context_settings={"allow_interspersed_args": False},
    epilog="Example: autoconv run -- generate.py --prompt 'a dog on a beach', or: autoconv run -m generate --frames 33",
)
@click.option("--policy", type=click.Choice([str(p) for p in Policy]), help="Default: AUTOCONV_POLICY, else auto.")
@click.option("-m", "module", metavar="MODULE", help="Run a module, as python -m does; what follows is its own.")
@click.argument("program", nargs=-1, type=click.UNPROCESSED, metavar="[--] PROGRAM [ARGUMENTS]...")
def run(policy: str | None, module: str | None, program: tuple[str, ...]) -> None:
    """Run a Python program with MLX patched: its 3D convolutions are autoconv's.

    PROGRAM is a script, or a command that is written in Python. It runs in this process, and ends with its own exit
    code. One line on stderr then says what happened. Processes that it starts are not patched.
    """
    from autoconv import settings
    from autoconv.program import Program, is_there, located

    if module is None and program[:1] == ("-m",):
        module, program = (program[1] if len(program) > 1 else ""), program[2:]
    if module is not None:
        if not is_there(module):
            msg = f"there is no module {module!r}"
            raise click.ClickException(msg)
        found = Program(module, program, is_module=True)
    elif program:
        try:
            found = Program(located(program[0]), program[1:])
        except ValueError as error:
            raise click.UsageError(str(error)) from error
    else:
        msg = "there is no program to run"
        raise click.UsageError(msg)
    if policy is not None:
        settings.configure(policy=policy)
    _patch_and_tell(found.title)
    raise Handover(found.run)


def _patch_and_tell(title: str) -> None:
    """Patch; once the program has ended, its threads and what it registered for that too, tell what happened, and keep
    how often it made each convolution under its title.
    """
    from autoconv import _calls, patching, settings
    from autoconv.tally import Tally

    tally, process = Tally(), os.getpid()
    _calls.listener = tally.counted
    patching.patch()

    def tell() -> None:
        if os.getpid() != process or sys.__stderr__ is None:  # a fork is no end of the program
            return
        with contextlib.suppress(OSError, ValueError):  # closed by the program or its reader
            print(f"autoconv: {tally.line(patching.calls(), *_timed_and_noted())}", file=sys.__stderr__, flush=True)
        if "autoconv.dispatch" in sys.modules:  # else nothing was decided
            from autoconv.dispatch import dispatcher

            dispatcher().name_network(title, tally.calls, settings.current())

    atexit.register(tell)


def _timed_and_noted() -> tuple[float, Collection[Problem]]:
    """Seconds that calls took for timing, and what they noted for a sweep; none where nothing was ever
    decided, without importing what that takes.
    """
    if "autoconv.dispatch" not in sys.modules:
        return 0.0, ()
    from autoconv.dispatch import dispatcher

    return dispatcher().tuned_s, dispatcher().noted
