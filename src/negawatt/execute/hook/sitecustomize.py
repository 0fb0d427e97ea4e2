"""Counts the optimizer steps of PyTorch programs that `negawatt cap` runs; Python imports it at start-up by its name.

It waits for torch.optim to be imported, hooks into every optimizer's step, and sends "PID STEPS" to the socket named in
$NEGAWATT_STEPS. The program runs in whatever Python and environment it likes, so this uses the standard library only.
A sitecustomize of the user's own is imported behind it. Nothing here may ever raise into the program.
"""

import contextlib
import importlib.util
import os
import socket
import sys

_MODULE = "torch.optim.optimizer"


class _Finder:
    """Finds torch.optim.optimizer the ordinary way, and hooks into it once it is there."""

    def find_spec(self, name, path=None, target=None):
        if name != _MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader:
    def __init__(self, loader):
        self._loader = loader

    def __getattr__(self, name):
        return getattr(self._loader, name)

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        self._loader.exec_module(module)
        with contextlib.suppress(Exception):  # an old torch without such hooks: no steps are seen, and cap says so
            module.register_optimizer_step_post_hook(_Counter())


class _Counter:
    """Called after each step of any optimizer."""

    def __init__(self):
        self._pid = 0
        self._steps = 0
        self._socket = None

    def __call__(self, *_):
        with contextlib.suppress(Exception):  # cap has ended, or its socket is full: the next step tells the sum
            if self._pid != os.getpid():  # also in a fork
                self._pid, self._steps = os.getpid(), 0
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                self._socket.setblocking(False)  # noqa: FBT003
                self._socket.connect(os.environ["NEGAWATT_STEPS"])
            self._steps += 1
            self._socket.send(b"%d %d" % (self._pid, self._steps))


if os.environ.get("NEGAWATT_STEPS"):
    sys.meta_path.insert(0, _Finder())

_here = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [folder for folder in sys.path if os.path.abspath(folder or ".") != _here]
_own = sys.modules.pop("sitecustomize", None)
try:
    import sitecustomize  # noqa: F401 -- the user's, if there is one
except ImportError as error:
    if error.name != "sitecustomize":
        raise
    if _own is not None:
        sys.modules["sitecustomize"] = _own
