"""All proofs of one edit; a leak ends the run, or is allowed and then told."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from obliteratus.edits.exactness import prove_receipt
from obliteratus.edits.proof import StreamProof, prove_stream, prove_tensors
from obliteratus.edits.receipt import Receipt
from obliteratus.errors import LeakError
from obliteratus.events import Deviation
from obliteratus.models.loaded import LoadedModel
from obliteratus.operator.edit import EditPlan

T = TypeVar("T")


def prove_edit(
    model: LoadedModel,
    plan: EditPlan,
    prompts: Sequence[Sequence[int]],
    *,
    receipt: Receipt | None = None,
    allow_leak: bool = False,
) -> tuple[StreamProof | None, tuple[Deviation, ...]]:
    """Prove ``plan`` on the edited ``model`` and return what real tokens showed.

    The matrices of ``receipt`` (if given) took what their strengths ask; whatever was edited at
    strength 1 is gone from its matrix and its write, and from the stream where every writer lost
    the same directions. The proof of tokens is None where nothing was removed at strength 1.
    Every proof that fails and is let through by ``allow_leak`` is returned as a Deviation.

    Raises:
        LeakError: a proof fails (unless ``allow_leak``).
    """
    leaks: list[Deviation] = []

    def run(prove: Callable[[bool], T]) -> T:  # ``prove`` takes allow_leak
        try:
            return prove(False)
        except LeakError as leak:
            if not allow_leak:
                raise
            leaks.append(
                Deviation(
                    where="proof of the edit",
                    asked="nothing beyond rounding left of what was removed",
                    done=f"went on with a leak: {leak.finding}",
                    reason="edit.allow_leak=true (--allow-leak)",
                )
            )
            return prove(True)

    if receipt is not None:
        run(lambda allow: prove_receipt(model, receipt, allow_leak=allow))
    run(lambda allow: prove_tensors(model, plan, allow_leak=allow))
    proof = None
    if any(
        edit.bias_shift is None and bool((edit.strengths == 1).any())
        for edit in plan
        if edit.site.role == "writer"
    ):
        proof = run(lambda allow: prove_stream(model, plan, prompts, allow_leak=allow))
    return proof, tuple(leaks)
