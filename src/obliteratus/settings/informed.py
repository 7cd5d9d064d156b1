"""Settings of an informed run: what ANALYZE finds decides what was not asked for."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from obliteratus.settings.section import Section

DECIDES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "alignment_imprint": ("edit.auto_regularize",),
        "concept_cone_geometry": ("distill.extractor", "distill.max_rank", "distill.min_rank"),
        "defense_robustness": (
            "edit.passes",
            "edit.pass_rank",
            "edit.pass_strength",
            "edit.layers",
        ),
        "cross_layer_alignment": ("edit.layers",),
    }
)
"""Analysis -> the settings that its rules may change."""


class InformedSettings(Section):
    """INFORMED: if ``enabled``, analyses run between PROBE and DISTILL, and rules read them.

    ``modules`` are the analyses (empty: all that a rule reads). ``keep`` are keys of settings that
    no rule may change. Every key that is given by ``--set``, or by a flag, is among them: what was
    asked for stays, and the decision is told all the same.
    """

    enabled: bool = False
    modules: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()

    def decides(self, modules: Iterable[str] = ()) -> tuple[str, ...]:
        """Return the keys of settings that only findings decide; none where it is not enabled.

        ``modules`` are the analyses that are run where none are asked for (none: all of them).
        """
        if not self.enabled:
            return ()
        run = self.modules or tuple(modules) or tuple(DECIDES)
        keys = dict.fromkeys(key for module in run for key in DECIDES.get(module, ()))
        return tuple(key for key in keys if key not in self.keep)
