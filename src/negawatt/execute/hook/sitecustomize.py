"""Counts the optimizer steps of PyTorch programs that `negawatt cap` runs; Python imports it at start-up by its name.

It waits for torch.optim to be imported, hooks into every optimizer's step, and sends "PID STEPS" to the socket named in
$NEGAWATT_STEPS, a path or "@" and an abstract name. The program runs in whatever Python and environment it likes, so
this uses the standard library only. A sitecustomize of the user's own is imported behind it. Nothing here may ever
raise into the program.
"""

import _thread
import atexit
import contextlib
import os
import socket
import sys

_MODULE = "torch.optim.optimizer"


class _Finder:
    """Finds torch.optim.optimizer as the other finders do, and hooks into it once it is there."""

    def __init__(self):
        self._busy = set()  # threads that ask the other finders

    def find_spec(self, name, path=None, target=None):
        # Another tool's finder may ask all finders in turn, this one too: what it finds then must not be hooked twice.
        if name != _MODULE or _thread.get_ident() in self._busy:
            return None
        self._busy.add(_thread.get_ident())
        try:
            others = [finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec")]
            spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        finally:
            self._busy.discard(_thread.get_ident())
        if hasattr(getattr(spec, "loader", None), "exec_module"):
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
            # torch.compile is not to look into the hook: it would warn of what it finds. This way of torch's own to
            # say so does not import the compiler, which takes seconds, before a step is made.
            disable = getattr(sys.modules["torch"], "_disable_dynamo", None)
            module.register_optimizer_step_post_hook(disable(_count) if disable else _count)


class _Counter:
    """Sends the steps of this process."""

    def __init__(self):
        self._pid = 0
        self._steps = 0
        self._socket = None

    def count(self):
        if self._pid != os.getpid():  # also in a fork
            self.close()
            self._steps = 0
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)  # noqa: FBT003
            address = os.environ["NEGAWATT_STEPS"]
            self._socket.connect("\0" + address[1:] if address.startswith("@") else address)
            self._pid = os.getpid()
        self._steps += 1
        self._socket.send(b"%d %d" % (self._pid, self._steps))

    def close(self):
        if self._socket is not None:
            self._socket.close()


_counter = _Counter()
atexit.register(_counter.close)  # or `python -X dev` would warn of it


def _count(*_):
    """Called after each step of any optimizer."""
    with contextlib.suppress(Exception):  # cap has ended, or its socket is full: the next step tells the sum
        _counter.count()


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
