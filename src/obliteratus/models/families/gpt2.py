"""GPT-2: Conv1D matrices stored [in, out], two embeddings that both write, biases everywhere."""

from obliteratus.models.anatomy import Component
from obliteratus.models.family import Family, Site, register


def conv1d(module: str, component: Component) -> Site:
    """Return the site of a ``Conv1D`` called ``module``: its weight is stored [in, out]."""
    return Site(f"{module}.weight", component, layout="in_out", bias=f"{module}.bias")


GPT2 = register(
    Family(
        name="gpt2",
        model_types=("gpt2",),
        backbone="transformer",
        blocks="transformer.h",
        final_norm="transformer.ln_f",
        embeddings=(
            Site("transformer.wte.weight", "embedding", layout="in_out"),
            Site("transformer.wpe.weight", "embedding", layout="in_out"),
        ),
        writers=(conv1d("attn.c_proj", "attention"), conv1d("mlp.c_proj", "mlp")),
        readers=(conv1d("attn.c_attn", "attention"), conv1d("mlp.c_fc", "mlp")),
        head=Site("lm_head.weight", "head"),
        internals=("ln_1.*", "ln_2.*"),
    )
)
