"""Was a checkpoint edited? Its matrices and those of its base are read from disk, one at a time."""

from obliteratus.analysis.detect import Detection, check_same_architecture
from obliteratus.analysis.detect import detect as detect_in
from obliteratus.models.checkpoint import read_checkpoint
from obliteratus.models.sources import DEFAULTS, resolve
from obliteratus.models.stored import StoredModel, open_stored
from obliteratus.pipeline.journal import Journal
from obliteratus.settings import ModelSettings
from obliteratus.store import Store


def detect(
    name: str,
    base: str | None = None,
    settings: ModelSettings = DEFAULTS,
    *,
    seed: int = 0,
    store: Store | None = None,
) -> Detection:
    """Say whether the weights of ``name`` show a directional edit, by themselves or against a base.

    The models are not built: memory holds one matrix of each and a few of d_model × d_model.
    ``settings.revision`` is that of ``name``; the base is taken at its default one.

    Raises:
        ObliteratusError: a model cannot be had, its weights are packed, or the base is of another
            architecture.
    """
    journal = Journal(store or Store())
    with journal.stage("summon", f"read the outline of {name}") as note:
        model = _opened(name, settings, journal.store)
        anatomy = model.outline.anatomy
        note.text = f"{anatomy.model_type}, {anatomy.n_layers} layers of width {anatomy.d_model}"
    other: StoredModel | None = None
    if base is not None:
        with journal.stage("summon", f"read the outline of {base}") as note:
            of_base = settings.model_copy(update={"revision": None})
            other = _opened(base, of_base, journal.store)
            check_same_architecture(model, other)
            note.text = "the same architecture"
    with journal.stage("analyze", "read the matrices that write to the stream") as note:
        found = detect_in(model, other, seed=seed)
        note.text = found.verdict
    return found


def _opened(name: str, settings: ModelSettings, store: Store) -> StoredModel:
    found = resolve(name, settings, store=store, hashes=False)
    return open_stored(read_checkpoint(found.folder), found.source, settings)
