"""Devices, threads and memory: what there is, whether it computes, and what is left idle."""

import os
import shutil

import psutil
import torch

from obliteratus.doctor.finding import Finding

GIB = 2**30
SMALL_GIB = 2.0  # free: less than the embedded model and its measurements need
SIZE = 64  # of the matrices of the trial; their product is a whole number, exact in float32
TORCH_FOR_CUDA = "pip install --force-reinstall torch"


def devices() -> list[Finding]:
    """Return each device, whether it computes, and any that torch cannot use."""
    found = [_tried("cpu", "CPU", f"{os.cpu_count()} cores")]
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        half = "bfloat16" if torch.cuda.is_bf16_supported() else "no bfloat16"
        text = f"{facts.name}, {facts.total_memory / GIB:.0f} GiB, {half}"
        found.append(_tried(f"cuda:{index}", f"cuda:{index}", text))
    if torch.backends.mps.is_available():
        found.append(_tried("mps", "mps", "Apple GPU"))
    if len(found) == 1:
        found.append(_no_accelerator())
    return found


def threads() -> Finding:
    """Return how many threads torch uses, and whether processors stay idle."""
    used, cores = torch.get_num_threads(), psutil.cpu_count(logical=False) or 1
    text = f"torch uses {used} of {cores} cores"
    if used >= cores:
        return Finding("threads", "good", text)
    asked = os.environ.get("OMP_NUM_THREADS")
    if asked is not None:
        return Finding(
            "threads", "slow", f"{text}: OMP_NUM_THREADS is {asked}", "unset OMP_NUM_THREADS"
        )
    return Finding("threads", "slow", text, f"export OMP_NUM_THREADS={cores}")


def memory() -> list[Finding]:
    """Return the memory of the machine and of its accelerators, in all and free."""
    whole = psutil.virtual_memory()
    found = [_room("memory", whole.available, whole.total)]
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        found.append(_room(f"memory of cuda:{index}", free, total))
    return found


def _room(name: str, free: int, total: int) -> Finding:
    text = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
    if free / GIB < SMALL_GIB:
        mend = "end other programs; `obliteratus inspect MODEL` says what a model needs"
        return Finding(name, "slow", text, mend)
    return Finding(name, "good", text)


def _tried(device: str, name: str, text: str) -> Finding:
    """Multiply two matrices on ``device`` and check the product."""
    try:
        ones = torch.ones(SIZE, SIZE, device=device)
        is_right = bool((ones @ ones == SIZE).all())
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:120]
        return Finding(name, "broken", f"{text}: {reason}", "check its driver, or hide the device")
    if not is_right:
        wrong = f"{text}: a product of matrices is wrong"
        return Finding(name, "broken", wrong, "check its driver, or hide the device")
    return Finding(name, "good", text)


def _no_accelerator() -> Finding:
    if shutil.which("nvidia-smi") is None:
        return Finding("accelerator", "slow", "none: models run on the CPU")
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        text = "CUDA_VISIBLE_DEVICES hides the GPU"
        return Finding("accelerator", "slow", text, "unset CUDA_VISIBLE_DEVICES")
    text = f"there is a GPU's driver, and torch {torch.__version__} does not see a GPU"
    return Finding("accelerator", "slow", text, TORCH_FOR_CUDA)
