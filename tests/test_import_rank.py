"""An import goes to a lower rank only, or stays inside its folder (docs/design/architecture.md)."""

import ast
from pathlib import Path

import pytest

import obliteratus

ROOT = Path(obliteratus.__file__).parent
RANKS = (
    ("errors", "processes", "shapes"),
    ("amounts", "registry", "settings", "events", "statistics", "store"),
    ("models", "prompts"),
    ("probe", "operator"),
    ("measure",),
    ("directions", "pictures"),
    ("analysis",),
    ("edits",),
    ("verify",),
    ("release",),
    ("community",),
    ("pipeline",),
    ("studies", "remote", "hardening", "doctor"),
    ("ui",),
    ("cli",),
    ("testing",),
)
RANK = {name: rank for rank, names in enumerate(RANKS) for name in names}


def imports(tree: ast.AST) -> list[tuple[int, str]]:
    """Return (line, room) of every import of this package."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "obliteratus":
                names = [f"obliteratus.{alias.name}" for alias in node.names if alias.name in RANK]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found += [
            (node.lineno, name.split(".")[1]) for name in names if name.startswith("obliteratus.")
        ]
    return found


def violations(room: str, tree: ast.AST) -> list[str]:
    return [
        f"line {line}: {room} (rank {RANK[room]}) imports {target} (rank {RANK[target]})"
        for line, target in imports(tree)
        if target != room and RANK[target] >= RANK[room]
    ]


@pytest.mark.parametrize(
    "path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT))
)
def test_imports_go_to_a_lower_rank(path: Path) -> None:
    parts = path.relative_to(ROOT).parts
    room = parts[0].removesuffix(".py")
    if room in {"__init__", "__main__"}:
        return
    assert room in RANK, f"{room} has no rank: add it to the architecture first"
    assert violations(room, ast.parse(path.read_text())) == []


@pytest.mark.parametrize(
    "line",
    [
        "import obliteratus.verify.report",
        "from obliteratus.directions import distill",
        "from obliteratus import probe",
    ],
)
def test_an_upward_import_is_found(line: str) -> None:
    assert len(violations("models", ast.parse(line))) == 1
    assert violations("cli", ast.parse(line)) == []
