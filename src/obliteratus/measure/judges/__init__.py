"""One file per judge; each registers itself in ``obliteratus.measure.judges.base.JUDGES``."""
