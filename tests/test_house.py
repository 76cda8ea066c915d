"""Rooms import only from rooms before them, modules in no circle, and public names when used."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ["errors", "store", "config", "cluster", "data", "encoders", "embed", "embed_shards"]
ROOMS += ["arrange", "train", "runs", "export", "study", "doctor", "cli_options", "cli_runs", "cli"]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.glob("tma/**/*.py"))
}


def imported(name: str) -> set[str]:
    """Return the modules that one imports: in functions and for types alone, too."""
    found = set[str]()
    for node in ast.walk(ast.parse(MODULES[name].read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            parts = {f"{node.module}.{alias.name}" for alias in node.names} & {*MODULES}
            found |= parts or {node.module}
    return found & {*MODULES}


def test_rooms_import_only_from_rooms_before_them() -> None:
    place = {f"tma.{room}": number for number, room in enumerate(ROOMS)}
    room = {name: ".".join(name.split(".")[:2]) for name in MODULES if name != "tma"}
    assert {*room.values()} <= {*place}
    arrows = [(name, other) for name in room for other in sorted(imported(name))]
    assert [a for a in arrows if a[1] == "tma" or place[room[a[0]]] < place[room[a[1]]]] == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {name: imported(name) for name in MODULES if name != "tma"}
    assert len([*TopologicalSorter(graph).static_order()]) >= len(graph)  # else a CycleError


@pytest.mark.parametrize(
    "first",
    ["import tma.arrange.orders, tma.embed", "from tma.arrange import orders", "import tma"],
)
def test_a_function_is_not_hidden_by_the_room_of_its_name(first: str) -> None:
    script = f"{first}\nimport tma, tma.arrange.rounds\nfrom tma import embed\n"
    script += "from tma.arrange import orders, rounds\nassert orders.arrange is tma.arrange\n"
    script += "print(tma.arrange.__name__, tma.embed is embed, callable(embed))"
    told = subprocess.check_output([sys.executable, "-c", script], text=True)
    assert told == "arrange True True\n"


def test_every_public_name_is_there_and_none_is_heavy() -> None:
    heavy = {"torch", "transformers", "datasets", "sentence_transformers", "pandas", "numpy"}
    script = (
        f"import sys, tma\nprint({heavy} & {{*sys.modules}}, {{*tma.__all__}} - {{*dir(tma)}})\n"
    )
    script += "print([name for name in tma.__all__ if not callable(getattr(tma, name))], tma.study)"
    told = subprocess.check_output([sys.executable, "-c", script], text=True)
    assert told.startswith("set() set()\n[] <module 'tma.study' ")
