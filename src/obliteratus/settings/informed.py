"""Settings of an informed run: what ANALYZE finds decides what was not asked for."""

from obliteratus.settings.section import Section


class InformedSettings(Section):
    """INFORMED: if ``enabled``, analyses run between PROBE and DISTILL, and rules read them.

    ``modules`` are the analyses (empty: all that a rule reads). ``keep`` are keys of settings that
    no rule may change. Every key that is given by ``--set``, or by a flag, is among them: what was
    asked for stays, and the decision is told all the same.
    """

    enabled: bool = False
    modules: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
