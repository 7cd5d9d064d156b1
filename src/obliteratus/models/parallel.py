"""One model in several processes: split by transformers' tensor plan, or whole in each.

Under tensor parallelism every process holds a part of each block's matrices and sums what the parts
write, so that the residual stream is the same in all of them: hooks read it as in one process. The
head stays whole in each, because measurements turn states into logits without the model.
"""

import torch
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.distributed.configuration_utils import DistributedConfig

from obliteratus.errors import UnsupportedArchitectureError, UsageError
from obliteratus.models.anatomy import Anatomy
from obliteratus.models.describe import family_of
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.plumbing import capture
from obliteratus.processes import from_first, gathered, join, launched, number_here
from obliteratus.settings import ModelSettings
from obliteratus.shapes import Layer

START = "torchrun --nproc-per-node N -m obliteratus"
BACKENDS = {"cuda": "nccl", "xpu": "xccl"}
WHOLE = "replicate"  # transformers' style for what every process keeps whole
CHECK_TOKENS = 8  # run once in all processes to compare their streams
COLUMNS = "colwise"


def join_processes(settings: ModelSettings) -> None:
    """Join the processes that torchrun has started, as ``settings.parallel`` asks.

    Raises:
        UsageError: several processes were started and share nothing, one is to share, or a setting
            does not go with several.
    """
    parallel, started = settings.parallel, launched()
    if parallel is None:
        if started > 1:
            raise UsageError(
                f"torchrun started {started} processes, and nothing says what they share. Pass "
                "--parallel tensor (each holds a part of the model) or data (each reads a part of "
                "the prompts)."
            )
        return
    if started == 1:
        raise UsageError(
            f"--parallel {parallel} is for several processes, and this is one. Start it with "
            f"`{START} ...`, N being the number of processes on this machine."
        )
    for name in ("device_map", "max_memory", "quantize"):
        if getattr(settings, name) is not None:
            flag = name.replace("_", "-")
            raise UsageError(
                f"--{flag} does not go with --parallel: each process takes one device, and "
                "packed weights are not split. Leave it out."
            )
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if device is None or device.type not in BACKENDS:
        join("gloo")
        return
    torch.accelerator.set_device_index(number_here())
    join(BACKENDS[device.type])


def check_divisible(outline: PreTrainedModel, name: str) -> None:
    """Check that ``outline``, which may be on ``meta``, can be split between the processes.

    Raises:
        UnsupportedArchitectureError: transformers has no tensor plan for its blocks.
        UsageError: its heads cannot be shared evenly.
    """
    config, blocks = outline.config.get_text_config(), family_of(outline.config).blocks
    plan: dict[str, str] = outline.tp_plan
    inside = {key: style for key, style in plan.items() if key.startswith(f"{blocks}.")}
    if not inside:
        raise UnsupportedArchitectureError(
            f"transformers has no tensor plan for the blocks of a {config.model_type} model "
            f"({name}), so it cannot be split between processes. Use --parallel data, or one "
            "process with --device-map auto."
        )
    if not any("attn" in key and style == COLUMNS for key, style in inside.items()):
        return
    for what in ("num_attention_heads", "num_key_value_heads"):
        heads = getattr(config, what, None)
        if heads is not None and heads % launched():
            raise UsageError(
                f"{name} has {what} = {heads}, which {launched()} processes cannot share evenly. "
                f"Start a number that divides {heads}."
            )


def split_between(anatomy: Anatomy) -> DistributedConfig:
    """Return what tells ``from_pretrained`` to split a model, all but its head.

    The plan of transformers would split the head, and an embedding by its vocabulary; one that is
    tied to the head stays whole with it.
    """
    head = next(site for site in anatomy.sites if site.component == "head")
    whole = [head, *(site for site in anatomy.sites if site.tied_to == head.name)]
    plan = {site.name.rpartition(".")[0]: WHOLE for site in whole}
    return DistributedConfig(tp_size=launched(), tp_plan=plan)


@torch.no_grad()
def check_streams(model: LoadedModel) -> None:
    """Check that the residual stream is the same in all processes, to the last bit.

    A part that is not summed, or that a plan forgets, shows here before anything is measured.

    Raises:
        UnsupportedArchitectureError: it is not, or the head is split.
    """
    head = model.module.get_submodule(model.anatomy.head)
    is_split = isinstance(head.weight, DTensor)
    layers: tuple[Layer, ...] = ("embedding", *range(model.anatomy.n_layers))
    ids = torch.arange(CHECK_TOKENS, device=model.device)[None]
    with capture(model, layers) as stream:
        model.module.get_submodule(model.anatomy.backbone)(input_ids=ids, use_cache=False)
        mine = torch.stack([stream[layer].to("cpu", torch.float64) for layer in layers])
    first = from_first(lambda: mine)
    worst = max(gathered(float((mine - first).abs().max() / first.abs().max())))
    if worst == 0 and not is_split:
        return
    what = "its head is split" if is_split else f"the residual stream differs by {worst:.1e}"
    raise UnsupportedArchitectureError(
        f"the processes do not hold one {model.anatomy.model_type} model between them: {what}. The "
        "tensor plan of transformers does not do for it. Use --parallel data, or one process with "
        "--device-map auto."
    )
