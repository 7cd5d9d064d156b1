"""docs/theory.md says of every preset what its edit is; the edit of the preset is that.

The table of section 8 is read, the preset compiled and carried out on tiny models whose gains,
biases and multipliers are random, and each matrix compared with the equations of the document.
"""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from obliteratus.directions.directions import Directions
from obliteratus.directions.extraction import extraction
from obliteratus.directions.filters import Removed
from obliteratus.directions.samples import Samples
from obliteratus.edits.memory import excise
from obliteratus.edits.planner import plan
from obliteratus.errors import EditError
from obliteratus.models.anatomy import WeightSite
from obliteratus.models.loaded import LoadedModel
from obliteratus.operator.behind import norm_behind
from obliteratus.operator.edit import EditPlan
from obliteratus.operator.matrices import matrices
from obliteratus.pipeline.explain import form_of
from obliteratus.pipeline.methods import methods, settings_for
from obliteratus.settings import RunSettings
from obliteratus.shapes import Layer
from obliteratus.testing.keystone import copied
from obliteratus.testing.tiny import tiny_model

THEORY = Path(__file__).parents[1] / "docs" / "theory.md"
COLUMNS = ("preset", "U", "V", "A", "targets", "outside")
MODELS = ("llama", "gpt2", "granite", "gemma2", "gpt_oss", "bloom", "nemotron_h")
EXACT = 1e-12
FOUND = 1.2
"""A strength that DISTILL might have found, where the preset lets it search."""


def table() -> dict[str, dict[str, str]]:
    """Return the rows of the table of presets in docs/theory.md."""
    lines = THEORY.read_text(encoding="utf-8").splitlines()
    start = lines.index(f"| {' | '.join(COLUMNS)} |") + 2
    rows: dict[str, dict[str, str]] = {}
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        row = dict(zip(COLUMNS, cells, strict=True))
        rows[row.pop("preset").strip("`")] = row
    return rows


TABLE = table()


def test_every_preset_is_derived() -> None:
    assert set(TABLE) == {method.name for method in methods()}


@pytest.mark.parametrize("name", TABLE)
def test_the_program_prints_what_the_document_says(name: str) -> None:
    form = form_of(settings_for(name))
    outside = ", ".join(each.partition(":")[0] for each in form.outside)
    assert TABLE[name] == {
        "U": form.write,
        "V": form.read,
        "A": form.strengths,
        "targets": form.targets,
        "outside": outside or "–",
    }
    assert ("D" in form.formula) == ("column norms" in outside)


def drawn(model: LoadedModel, n: int = 96) -> dict[Layer, Samples]:
    """Return both classes behind each block: correlated noise, far from the origin."""
    source = torch.Generator().manual_seed(3)
    width, blocks = model.anatomy.d_model, range(model.anatomy.n_layers)
    shape = (len(blocks), 2, n, width)
    mix = 0.1 * torch.randn(len(blocks), 1, width, width, generator=source, dtype=torch.float64)
    mix += torch.eye(width, dtype=torch.float64)
    noise = torch.randn(shape, generator=source, dtype=torch.float64) @ mix
    centre = 5 * torch.randn(len(blocks), 1, 1, width, generator=source, dtype=torch.float64)
    shift = 3 * torch.randn(len(blocks), 1, width, generator=source, dtype=torch.float64)
    values = noise + centre
    values[:, 0] += shift
    means = values[:, 1].mean(1)
    return {
        block: Samples(
            values[block, 0].mean(0) - means[block], values[block, 0], values[block, 1], True, means
        )
        for block in blocks
    }


def found(model: LoadedModel, settings: RunSettings) -> tuple[Directions, Samples]:
    """Return what DISTILL would hand on: the shipped extractor, placed as it places them."""
    distill = settings.distill
    extract = extraction(distill.extractor, distill.knobs)
    samples = drawn(model)
    rows = {layer: extract(each, max_rank=distill.max_rank) for layer, each in samples.items()}
    source = samples[1]
    layers: tuple[Layer, ...] = ("embedding", *samples)
    removed: Removed
    if distill.selection == "per_layer":
        removed = extract.removed_at(samples, rows)
    else:
        removed = extract.removed_everywhere(source, rows[1], layers)
    generator = torch.Generator().manual_seed(5)
    tuned = None
    if distill.tune.steps or distill.kernel.trials:
        parts = sorted({site.component for site in model.anatomy.writers})
        tuned = {
            layer: {part: torch.rand(1, generator=generator, dtype=torch.float64) for part in parts}
            for layer in layers
        }
    return Directions(
        basis=removed.basis,
        scale={},
        method=distill.extractor,
        source_layer=1,
        strength=FOUND if distill.max_strength > 1 else 1.0,
        strengths=tuned,
        mean=torch.cat([source.harmful, source.harmless]).mean(0),
        filters=removed.filters,
        strong_layers=tuple(range(model.anatomy.n_layers))[:3],
    ), source


def layer_of(site: WeightSite) -> Layer:
    return "embedding" if site.layer is None else site.layer


def is_target(site: WeightSite, words: str, strong: tuple[int, ...]) -> bool:
    return {
        "every writer": True,
        "every writer but the embedding": site.layer is not None,
        "writers of the strong blocks": site.layer in strong,
    }[words]


def strength_of(words: str, site: WeightSite, directions: Directions) -> float:
    """Return α of the cell A for one matrix."""
    if words == "s, found in 1 to 1.3":
        return FOUND
    if words in ("S_lc, by gradient", "S_lc, by trials"):
        assert directions.strengths is not None
        return float(directions.strengths[layer_of(site)][site.component])
    place = re.fullmatch(r"([\d.]+) \(1 \+ ([\d.]+) \(1 − \|ξ_l\|\)\)", words)
    if place is None:
        return float(words.replace("−", "-"))
    assert site.layer is not None
    blocks = directions.strong_layers
    ends = {blocks[0]: -1.0, blocks[-1]: 1.0}
    return float(place[1]) * (1 + float(place[2]) * (1 - abs(ends.get(site.layer, 0.0))))


def pair_of(
    row: dict[str, str], layer: Layer, directions: Directions, source: Samples
) -> tuple[Tensor, Tensor]:
    """Return U and V (columns) of the stream, as the letters of the table define them."""
    basis = directions.basis[layer].T
    if row["U"] == "R":
        assert torch.equal(basis, directions.basis[0].T)
    else:
        assert row["U"] == "R_l"
        others = (each for key, each in directions.basis.items() if key not in (layer, "embedding"))
        assert all(not torch.allclose(basis.T, other) for other in others)
    torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1], dtype=torch.float64))
    if row["V"] == row["U"]:
        return basis, basis
    assert row["V"] == "F"  # equation (7), its Σ shrunk as section 3 says
    total = torch.cov(torch.cat([source.harmful, source.harmless]).T, correction=0)
    share, width = 0.3, len(total)
    shrunk = (1 - share) * total + share * total.trace() / width * torch.eye(width).double()
    reads = torch.linalg.inv(shrunk) @ source.delta
    return basis, (reads * source.delta.norm() / (reads @ source.delta))[:, None]


def behind(model: LoadedModel, site: WeightSite, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pair of the matrix itself: equations (3) and (5)."""
    norm = norm_behind(model, site)
    if norm is None:
        return u, v
    gain = norm.gain[:, None]
    if not norm.centres:
        return u / gain, gain * v
    h = 1 / gain
    rest = h - u @ (u.T @ h)
    nearest = u - rest @ (h.T @ u) / rest.square().sum()
    read = gain * v
    return nearest / gain, read - read.mean(0)


def numbers(model: LoadedModel, site: WeightSite) -> list[Tensor]:
    """Return the matrices of a site, each [d_model, d_in]."""
    return matrices(model.module.get_parameter(site.name).detach(), site.layout)


def compiled(name: str, model_type: str) -> tuple[LoadedModel, LoadedModel, EditPlan, Directions]:
    model = tiny_model(model_type)
    settings = settings_for(name)
    directions, _ = found(model, settings)
    planned = plan(model, directions, settings.edit)
    after = copied(model)
    excise(after, planned)
    return model, after, planned, directions


@pytest.mark.parametrize("model_type", MODELS)
@pytest.mark.parametrize("name", [name for name in TABLE if name != "leace"])
def test_the_edit_of_a_preset_is_the_operator_of_the_table(name: str, model_type: str) -> None:
    check(name, model_type)


@pytest.mark.parametrize("model_type", [each for each in MODELS if each != "bloom"])
def test_the_edit_of_leace_is_the_operator_of_the_table(model_type: str) -> None:
    check("leace", model_type)


def test_leace_has_no_exact_form_before_a_layer_norm() -> None:
    with pytest.raises(EditError, match=r"a LayerNorm follows it"):
        compiled("leace", "bloom")


def check(name: str, model_type: str) -> None:
    row = TABLE[name]
    model, after, planned, directions = compiled(name, model_type)
    _, source = found(model, settings_for(name))
    edited = {edit.site.name: edit for edit in planned}
    shifts = 0
    for site in model.anatomy.writers:
        target = is_target(site, row["targets"], directions.strong_layers)
        assert (site.name in edited) == target, site.name
        pairs = zip(numbers(model, site), numbers(after, site), strict=True)
        if not target:
            assert all(torch.equal(old, new) for old, new in pairs)
            continue
        stream = pair_of(row, layer_of(site), directions, source)
        u, v = behind(model, site, *stream)
        alpha = strength_of(row["A"], site, directions)
        torch.testing.assert_close(v.T @ u, torch.eye(u.shape[1], dtype=torch.float64))
        for old, new in pairs:
            wanted = old - alpha * u @ (v.T @ old)
            if "column norms" in row["outside"]:
                wanted = wanted * (old.norm(dim=0) / wanted.norm(dim=0))
            if "shift" in row["outside"] and edited[site.name].bias_shift is not None:
                assert directions.mean is not None
                moved = stream[0] @ (stream[1].T @ directions.mean) / site.multiplier
                wanted = wanted + moved[:, None]
                shifts += 1
            assert float((new - wanted).norm()) <= EXACT * float(old.norm()) * float(u.norm())
        if site.bias is not None:
            old, new = (m.module.get_parameter(site.bias).detach() for m in (model, after))
            assert float((new - (old - alpha * (old @ v) @ u.T)).abs().max()) <= EXACT
        if site.post_norm is not None and site.post_norm.bias is not None:
            old, new = (m.module.get_parameter(site.post_norm.bias) for m in (model, after))
            along = (old @ stream[1]) @ stream[0].T
            assert float((new - (old - alpha * along)).abs().max()) <= EXACT
    assert shifts == ("shift" in row["outside"])


@pytest.mark.parametrize("name", TABLE)
def test_a_head_is_no_target(name: str) -> None:
    model, after, planned, _ = compiled(name, "gpt2")
    head = next(site for site in model.anatomy.sites if site.component == "head")
    old, new = (m.module.get_parameter(head.name) for m in (model, after))
    assert torch.equal(old, new)
    assert planned.unties_head == (TABLE[name]["targets"] == "every writer")


def test_ridge_and_place_give_the_strengths_of_the_publication() -> None:
    """Equation (9) with λ = 0.1 and α = 0.3, and β = 0.5 at five blocks."""
    settings = settings_for("gabliteration").edit
    assert settings.strength == pytest.approx(0.3 / (1 + 0.1), abs=5e-5)
    factors = [settings.strengths.of_place(block, (3, 5, 6, 8, 9)) for block in (3, 5, 6, 8, 9)]
    assert factors == pytest.approx([1.0, 1.25, 1.5, 1.25, 1.0])
    assert settings.strengths.of_place(None, (3, 5)) == 1.0
    assert settings.strengths.of_place(7, (7,)) == 1.5


def test_later_passes_are_named_outside() -> None:
    settings = settings_for("aggressive")
    assert settings.edit.passes > 1
    assert "passes" in TABLE["aggressive"]["outside"]
    once = settings.model_copy(update={"edit": settings.edit.model_copy(update={"passes": 1})})
    assert not any(each.startswith("passes") for each in form_of(once).outside)


def test_the_places_of_an_edit_follow_its_layers() -> None:
    settings = settings_for("arditi", ["edit.layers=8-16", "edit.norm=row"])
    form = form_of(settings)
    assert form.targets == "writers of 8-16"
    assert form.formula == "W' = D (W − U A Vᵀ W)"
