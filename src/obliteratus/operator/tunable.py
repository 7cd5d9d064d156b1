"""A removal as parameters: directions, and a strength per layer and component, for gradients."""

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from obliteratus.errors import UnsupportedArchitectureError
from obliteratus.models.anatomy import Component
from obliteratus.models.loaded import LoadedModel
from obliteratus.operator.behind import PostNormEdit
from obliteratus.operator.edit import StreamEdit, WeightEdit
from obliteratus.operator.removal import SiteStrengths, removal
from obliteratus.shapes import Layer


class TunableRemoval(nn.Module):
    """The edits of :func:`obliteratus.operator.removal.removal` as a function of parameters.

    ``directions`` [rank, d_model] are shared by all layers; their Gram-Schmidt basis is what is
    removed. ``strengths`` [place, rank] has a row per layer and component; writers that share a
    module, whose writes a hook cannot tell apart, share one. Both are float64.

    Raises:
        UnsupportedArchitectureError: the model takes hooks only, so that the result could not be
            written into its weights.
    """

    def __init__(
        self,
        model: LoadedModel,
        rows: Float64[Tensor, "rank d_model"],
        layers: tuple[Layer, ...],
        *,
        strength: float,
        post_norm: PostNormEdit = "oblique",
    ) -> None:
        """Begin with ``rows`` at one ``strength`` in all writers of ``layers``."""
        super().__init__()
        if model.anatomy.hooks_only is not None:
            raise UnsupportedArchitectureError(
                f"a '{model.anatomy.model_type}' model cannot be tuned, because its weights cannot "
                f"be edited exactly: {model.anatomy.hooks_only}. Use --method basic under hooks."
            )
        self.layers: tuple[Layer, ...] = layers
        self.model = model
        self.post_norm: PostNormEdit = post_norm
        self._places = _places(model, layers)
        n_places = max(self._places.values()) + 1
        self.directions = nn.Parameter(rows.to(torch.float64).clone())
        self.strengths = nn.Parameter(
            torch.full((n_places, len(rows)), strength, dtype=torch.float64)
        )

    def edits(self) -> tuple[WeightEdit | StreamEdit, ...]:
        """Return the edits as they are now; gradients reach both parameters through them."""
        rows = self.basis()
        return removal(
            self.model,
            dict.fromkeys(self.layers, rows),
            strengths=self.site_strengths(),
            post_norm=self.post_norm,
        )

    def basis(self) -> Float64[Tensor, "rank d_model"]:
        """Return orthonormal rows, the first along the first of ``directions``."""
        columns, triangle = torch.linalg.qr(self.directions.T)
        return (columns * torch.diagonal(triangle).sign()).T

    @torch.no_grad()
    def shrink(self, amount: float) -> None:
        """Pull the strengths of each layer to 0 by ``amount`` of their length together.

        The proximal step of a group lasso over layers: a layer that is shorter becomes exactly 0,
        and an edit of strength 0 leaves its matrix as it is.
        """
        if not amount:
            return
        places: dict[Layer, set[int]] = {}
        for (layer, _), place in self._places.items():
            places.setdefault(layer, set()).add(place)
        for numbers in places.values():
            rows = sorted(numbers)
            length = float(self.strengths[rows].norm())
            if length:
                self.strengths[rows] *= max(0.0, 1 - amount / length)

    def site_strengths(self) -> SiteStrengths:
        """Return the strengths [rank] of each component of each layer, as views."""
        found: dict[Layer, dict[Component, Tensor]] = {}
        for (layer, component), place in self._places.items():
            found.setdefault(layer, {})[component] = self.strengths[place]
        return found


def _places(model: LoadedModel, layers: tuple[Layer, ...]) -> dict[tuple[Layer, Component], int]:
    """Number the components of each layer; those that write through one module get one number."""
    by_module: dict[str, int] = {}
    places: dict[tuple[Layer, Component], int] = {}
    for site in model.anatomy.writers:
        layer: Layer = "embedding" if site.layer is None else site.layer
        if layer not in layers:
            continue
        key = (layer, site.component)
        number = places.get(key, by_module.get(site.module, len(set(places.values()))))
        places[key] = by_module[site.module] = number
    return places
