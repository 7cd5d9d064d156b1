"""JetMoe: mixtures of experts in attention and MLP, each with one bias after the sum of experts."""

from dataclasses import replace

from obliteratus.models.families.llama import LLAMA
from obliteratus.models.families.parts import routers
from obliteratus.models.family import Site, linear, register

TOP_K = "config.num_experts_per_tok"


def experts(weight: str, module: str, bias: str | None = None) -> Site:
    """Return the site of a fused tensor of experts that exists in every block."""
    return Site(weight, "experts", module=module, expert="fused", bias=bias)


JETMOE = register(
    replace(
        LLAMA,
        name="jetmoe",
        model_types=("jetmoe",),
        writers=(
            experts(
                "self_attention.experts.output_linear.weight",
                "self_attention",
                "self_attention.experts.bias",
            ),
            experts("mlp.output_linear.weight", "mlp", "mlp.bias"),
        ),
        readers=(
            experts("self_attention.experts.input_linear.weight", "self_attention"),
            *routers("self_attention.experts.router.layer", top_k=TOP_K, optional=False),
            linear("self_attention.kv_proj", "attention"),
            experts("mlp.input_linear.weight", "mlp"),
            *routers("mlp.router.layer", top_k=TOP_K, optional=False),
        ),
    )
)
