"""NVML, the NVIDIA driver's library: loaded, with the GPUs that this user may use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from negawatt.core.errors import NeedsPrivilegeError, NegawattError


@dataclass(frozen=True, slots=True)
class NvmlGpu:
    """A GPU that NVML lists and this user may ask."""

    handle: Any
    uuid: str
    name: str


def open_nvml(given: Any | None, failure: type[NegawattError]) -> tuple[Any, tuple[NvmlGpu, ...]]:  # noqa: ANN401
    """NVML and its GPUs in PCI order; those of other users, which it counts too, are left out.

    Args:
        given: a module with the interface of `pynvml`; None imports it.
        failure: what is raised where there is no GPU, driver or package.

    Raises:
        NeedsPrivilegeError: if there are GPUs and this user may use none of them.
    """
    nvml = given or _imported(failure)
    try:
        nvml.nvmlInit()
        gpus = _gpus(nvml)
    except nvml.NVMLError as error:
        raise failure(
            f"NVML cannot be used ({error})",
            "without the NVIDIA driver no GPU can be read or set",
            "on a machine with an NVIDIA GPU, check its driver with `nvidia-smi`",
        ) from error
    if not gpus:
        raise failure("NVML lists no GPU", "there is nothing to read or set", "check with `nvidia-smi -L`")
    return nvml, gpus


def text(name: str | bytes) -> str:
    """NVML gave bytes before version 12 of its binding."""
    return name.decode() if isinstance(name, bytes) else name


def slices_of(nvml: Any, handle: Any) -> list[Any] | None:  # noqa: ANN401
    """The MIG slices of a GPU that this process may use; None without MIG."""
    try:
        if not nvml.nvmlDeviceGetMigMode(handle)[0]:
            return None
        most = nvml.nvmlDeviceGetMaxMigDeviceCount(handle)
    except nvml.NVMLError:  # GPUs that cannot be sliced answer so
        return None
    slices = []
    for index in range(most):
        try:
            slices.append(nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index))
        except nvml.NVMLError:  # no slice at this place, or not for this process
            continue
    return slices


def _gpus(nvml: Any) -> tuple[NvmlGpu, ...]:  # noqa: ANN401
    count, gpus = nvml.nvmlDeviceGetCount(), []
    for index in range(count):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
        except nvml.NVMLError as error:
            if getattr(error, "value", None) != nvml.NVML_ERROR_NO_PERMISSION:
                raise
            continue
        name, uuid = (text(ask(handle)) for ask in (nvml.nvmlDeviceGetName, nvml.nvmlDeviceGetUUID))
        gpus.append(NvmlGpu(handle, uuid, name))
    if count and not gpus:
        raise NeedsPrivilegeError(
            f"this user may use none of {count} NVIDIA GPUs",
            "a container or a batch system keeps them for others",
            "ask for a GPU (`docker run --gpus 1`, `srun --gpus 1`)",
        )
    return tuple(gpus)


def _imported(failure: type[NegawattError]) -> Any:  # noqa: ANN401 -- a module
    try:
        import pynvml
    except ImportError as error:
        raise failure(
            f"the package nvidia-ml-py cannot be imported ({error})",
            "it is how NVIDIA GPUs are read and set",
            "type `pip install nvidia-ml-py`",
        ) from error
    return pynvml
