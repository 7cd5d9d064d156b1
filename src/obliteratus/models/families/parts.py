"""Sites that many families share; a family file puts them together."""

from dataclasses import replace

from obliteratus.models.anatomy import Component, PostNorm, StreamSite
from obliteratus.models.family import Choice, Site, linear


def linears(component: Component, *modules: str) -> tuple[Site, ...]:
    """Return sites of ``nn.Linear`` modules that some models or blocks of the family may lack."""
    return tuple(linear(module, component, optional=True) for module in modules)


def embedding(path: str, multiplier: float | str = 1.0) -> Site:
    """Return the site of a token or position embedding, multiplied after its module if at all."""
    return Site(f"{path}.weight", "embedding", layout="in_out", multiplier=multiplier)


def scaled_embedding(path: str) -> Site:
    """Return the site of an embedding that multiplies its own output by ``embed_scale``."""
    site = embedding(path, f"{path}.embed_scale")
    return replace(site, module_multiplies=True)


def through(module: str, *sites: Site) -> tuple[Site, ...]:
    """Return ``sites`` with the output of ``module`` as their common raw write.

    For writers whose outputs are summed, or multiplied by a router or a gate, before they leave
    ``module``: the same edit of each commutes with that.
    """
    return tuple(replace(site, module=module) for site in sites)


def post_normed(norm: str, *sites: Site, offset: float = 0.0) -> tuple[Site, ...]:
    """Return ``sites`` with their write going through the norm ``norm`` before the stream."""
    return tuple(replace(site, post_norm=PostNorm(f"{norm}.weight", offset)) for site in sites)


def layer_normed(norm: str, *sites: Site) -> tuple[Site, ...]:
    """Return ``sites`` with their write going through the LayerNorm ``norm`` before the stream."""
    post_norm = PostNorm(f"{norm}.weight", kind="layer", bias=f"{norm}.bias")
    return tuple(replace(site, post_norm=post_norm) for site in sites)


def multiplied(multiplier: float | str, *sites: Site) -> tuple[Site, ...]:
    """Return ``sites`` with their write multiplied by ``multiplier`` on its way to the stream."""
    return tuple(replace(site, multiplier=multiplier) for site in sites)


NORM_ON_STREAM = "a norm acts on the stream itself, and its gains turn what was removed"
"""Why weights behind such a norm cannot keep a direction out of the stream."""


def stream_norms(*modules: str) -> tuple[StreamSite, ...]:
    """Return the norms of a block that the stream itself goes through."""
    return tuple(StreamSite(module, "through") for module in modules)


def routers(
    *modules: str,
    chosen_by: str | None = None,
    top_k: str | None = None,
    optional: bool = True,
) -> tuple[Site, ...]:
    """Return the sites of routers, which some blocks may lack where ``optional``.

    ``chosen_by`` is the module whose last output are the indices of the chosen experts (by default
    the router itself), or logits of which the ``top_k`` largest are chosen.
    """
    return tuple(
        replace(
            linear(module, "experts", optional=optional),
            choice=Choice(chosen_by or module, top_k),
        )
        for module in modules
    )


def norms(*modules: str) -> tuple[str, ...]:
    """Return the patterns of the weights and biases of ``modules``, which only feed readers."""
    return tuple(f"{module}.{name}" for module in modules for name in ("weight", "bias"))


GATED_MLP = linears("mlp", "mlp.gate_proj", "mlp.up_proj", "mlp.gate_up_proj")
"""Readers of a gated MLP, with its two halves apart or in one matrix."""

ATTENTION = linears(
    "attention",
    *(f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "qkv_proj")),
    *(f"self_attn.{name}" for name in ("q_a_proj", "kv_a_proj_with_mqa")),
    *(f"self_attn.{name}" for name in ("gate_proj", "g_proj")),
)
"""Readers of attention: queries, keys and values apart, in one matrix or through a latent
(multi-head latent attention), and the gate that some families put on its output."""

ATTENTION_INTERNALS = (
    *norms(
        "self_attn.q_norm", "self_attn.k_norm", "self_attn.q_layernorm", "self_attn.k_layernorm"
    ),
    *norms("self_attn.query_layernorm", "self_attn.key_layernorm"),
    *norms("self_attn.q_a_layernorm", "self_attn.kv_a_layernorm"),
)
"""Norms inside attention. Their width is that of heads or latents, which may equal d_model."""


def mixer_internals(mixer: str) -> tuple[str, ...]:
    """Return the patterns of what works between the two projections of a state-space ``mixer``."""
    names = ("norm", "conv1d", "dt_proj", "dt_layernorm", "b_layernorm", "c_layernorm")
    return (
        *norms(*(f"{mixer}.{name}" for name in names)),
        *(f"{mixer}.{name}" for name in ("x_proj.weight", "A_log", "D", "dt_bias")),
    )
