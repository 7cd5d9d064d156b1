"""One file per behaviour; each registers itself in ``obliteratus.measure.behaviour.BEHAVIOURS``."""
