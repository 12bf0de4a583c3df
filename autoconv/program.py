"""A Python program, run in this process as `python PROGRAM ...` or `python -m MODULE ...` would run it."""

from __future__ import annotations

import builtins
import importlib.util
import os
import runpy
import shutil
import sys
import types
import zipfile
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path


@dataclass(frozen=True)
class Program:
    """A program and its arguments.

    What it raises, `SystemExit` and `KeyboardInterrupt` among it, is left to the interpreter, which ends as it does for
    `python` itself. `sys.argv`, `sys.path[0]` and `__main__` are the program's from then on: this is a process's last
    deed.

    Attributes:
        name: A script, a folder or an archive with a `__main__.py`, or if `is_module` the dotted name of a module.
        arguments: Those of the program, `sys.argv[1:]`.
        is_module: Whether `name` is a module's.
    """

    name: str
    arguments: tuple[str, ...] = ()
    is_module: bool = False

    @property
    def title(self) -> str:
        """What it is called among networks: the module, or the file without its folders."""
        return self.name if self.is_module else Path(self.name).absolute().name

    def run(self) -> None:
        """Run it to its end; a traceback of what it raises begins with its own first frame."""
        try:
            self._run()
        except SystemExit:
            raise
        except BaseException as error:
            _show_from(_of_program(error.__traceback__))
            raise

    def _run(self) -> None:
        sys.argv = ["-m" if self.is_module else self.name, *self.arguments]
        if self.is_module:
            _begin_path_with(os.getcwd())
            runpy.run_module(self.name, run_name="__main__", alter_sys=True)
        elif is_script(self.name):
            _begin_path_with(os.path.dirname(os.path.realpath(self.name)))
            _run_script(self.name)
        else:
            _begin_path_with(None)  # `runpy` puts the folder or archive there, and its path in `sys.argv[0]`
            runpy.run_path(os.path.abspath(self.name), run_name="__main__")


def is_script(path: str) -> bool:
    """Whether `path` is the source of a program, rather than a folder or an archive of it, or its byte code."""
    return not (os.path.isdir(path) or path.endswith(".pyc") or zipfile.is_zipfile(path))


def located(name: str) -> str:
    """Where the program of that name lies: the path that it is, else a command's on `PATH`.

    Raises:
        ValueError: there is none, or it is not written in Python.
    """
    found = name if os.path.exists(name) else shutil.which(name)
    if found is None:
        msg = f"there is no file and no command {name!r}; a module is run by -m"
        raise ValueError(msg)
    if not is_script(found):
        return found
    with Path(found).open("rb") as file:
        head = file.read(512)
    if b"\0" in head or (found != name and b"python" not in b"".join(head.splitlines()[:3])):
        msg = f"{found} is not written in Python; name the script itself, as in `autoconv run -- script.py`"
        raise ValueError(msg)
    return found


def is_there(module: str) -> bool:
    """Whether the package that a module is in, or it itself, can be found, from the current folder too; imports none.

    Raises:
        ValueError: that is no name of a module.
    """
    top = module.partition(".")[0]
    if not all(part.isidentifier() for part in module.split(".")):
        msg = f"{module!r} is no name of a module"
        raise ValueError(msg)
    before = list(sys.path)
    sys.path.insert(0, os.getcwd())
    try:
        return top in sys.modules or importlib.util.find_spec(top) is not None
    finally:
        sys.path[:] = before


def _begin_path_with(folder: str | None) -> None:
    """Let `sys.path` begin with that folder in place of this command's own; not under `python -P`, which has none."""
    if not sys.flags.safe_path:
        sys.path[:1] = [] if folder is None else [folder]


_BEFORE = (__name__, "runpy", "importlib._bootstrap", "importlib._bootstrap_external", "zipimport")
"""Modules whose frames stand before a program's own."""


def _of_program(traceback: types.TracebackType | None) -> types.TracebackType | None:
    """The traceback from the program's first frame on; None where it has none, as of one that is no Python."""
    while traceback is not None and traceback.tb_frame.f_globals.get("__name__") in _BEFORE:
        traceback = traceback.tb_next
    return traceback


def _show_from(first: types.TracebackType | None) -> None:
    """Let the hook that shows what ends this process, the program's own or Python's, have a traceback from there on.

    On its way out the error passes frames of ours, and each is put in front; so they are taken away at the end.
    """
    hook = sys.excepthook

    def shown(kind: type[BaseException], error: BaseException, whole: types.TracebackType | None) -> None:
        ours = whole
        while ours is not None and ours is not first:
            ours = ours.tb_next
        if ours is first:
            whole = first
        hook(kind, error.with_traceback(whole), whole)

    sys.excepthook = shown


def _run_script(path: str) -> None:
    """Run a script as `__main__`.

    `runpy.run_path` sets `__package__` to an empty text, where scripts look for None (PEP 366), and takes `__main__`
    away at the end, when threads and what is registered for the exit may still be at work in it.
    """
    path = os.path.abspath(path)
    loader = SourceFileLoader("__main__", path)
    code = loader.source_to_code(loader.get_data(path), path)
    main = types.ModuleType("__main__")
    main.__dict__.update(__annotations__={}, __builtins__=builtins, __cached__=None, __file__=path, __loader__=loader)
    sys.modules["__main__"] = main
    exec(code, main.__dict__)
