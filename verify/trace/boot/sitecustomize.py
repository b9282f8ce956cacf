"""Imported by every Python process of a watched run before its own code, because this folder is on its PYTHONPATH."""

import os
import sys


def _load(name, folder):
    """Import the package in `folder` under a name of our own: the user's modules may have any other."""
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location(name, os.path.join(folder, "__init__.py"), submodule_search_locations=[folder])
    package = module_from_spec(spec)
    sys.modules[name] = package
    spec.loader.exec_module(package)


def _go_on(here):
    """Import the sitecustomize module that this one hides, if there is one."""
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec

    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != here]
    spec = PathFinder.find_spec("sitecustomize", sys.path)
    if spec and spec.loader:
        module = module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


def _start():
    here = os.path.dirname(os.path.abspath(__file__))
    if os.environ.get("KIT_WATCH"):
        try:
            _load("_kit_watch", os.path.join(os.path.dirname(here), "child"))
            from _kit_watch import bootstrap

            bootstrap.start(os.environ["KIT_WATCH"])
        except Exception as error:
            sys.stderr.write(f"kit watch: the recorder could not start: {type(error).__name__}: {error}\n")
    _go_on(here)


_start()
