"""How many small faults of the package its tests find: mutants drawn by seed, each run against tests that reach it.

Needs pytest-cov, and a run of the suite that notes which test executes which line:
    python -m pytest -n 2 --cov=hf_blemo --cov-context=test --cov-report= tests
    python benchmarks/mutations.py --number 30 --seed 12 --output out/mutations.json

A mutant swaps an operator or two arguments, moves a number or a bool, or turns a condition around. It meets the tests
of its own room first, and where it survives, all other tests that execute its line. Draws are made in a fixed order,
so that `--only` can name mutants of an earlier draw, as `--output` wrote them, to try them on another version: each is
found again by the text of its statement and of its definition's name.
"""

import argparse
import ast
import copy
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAIRS = "Add Sub, Mult Div, Lt LtE, Gt GtE, Eq NotEq, In NotIn, Is IsNot, And Or"
SWAPS: dict[type, type] = {ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult}
for _pair in PAIRS.split(", "):
    _one, _other = (getattr(ast, name) for name in _pair.split())
    SWAPS |= {_one: _other, _other: _one}


def mutations(node: ast.AST) -> Iterator[tuple[str, ast.expr, ast.expr]]:
    """What can be done to one node: kind, expression, and expression in its place."""
    new: Any = copy.deepcopy(node)
    if isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in SWAPS:
        new.op = SWAPS[type(node.op)]()
        yield "operator", node, new
    elif isinstance(node, ast.Compare) and len(node.ops) == 1:
        new.ops = [SWAPS[type(node.ops[0])]()]
        yield "comparison", node, new
    elif isinstance(node, ast.If | ast.IfExp | ast.While):
        yield "condition", node.test, ast.UnaryOp(ast.Not(), new.test)
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
        new.value = not node.value if isinstance(node.value, bool) else node.value + 1
        yield "constant", node, new
    elif isinstance(node, ast.Call) and len(node.args) > 1 and not any(isinstance(a, ast.Starred) for a in node.args):
        new.args[0], new.args[1] = new.args[1], new.args[0]
        yield "arguments", node, new


def _statements(node: ast.AST, names: tuple[str, ...] = ()) -> Iterator[tuple[str, ast.stmt]]:
    """Statements inside definitions, with the name of the innermost definition."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            yield from _statements(child, (*names, child.name))
            continue
        if isinstance(child, ast.stmt) and names:
            yield names[-1].lstrip("_"), child
        yield from _statements(child, names)


def _expressions(statement: ast.stmt) -> Iterator[ast.AST]:
    """A statement and its expressions, without those of statements inside it or of f-strings, whose places lie."""
    todo: list[ast.AST] = [statement]
    while todo:
        node = todo.pop(0)
        yield node
        inner = ast.stmt | ast.excepthandler | ast.JoinedStr | ast.match_case
        todo += [child for child in ast.iter_child_nodes(node) if not isinstance(child, inner)]


def _header(statement: ast.stmt) -> str:
    shown: Any = copy.copy(statement)
    for field in ("body", "orelse", "finalbody", "handlers"):
        if getattr(shown, field, None):
            setattr(shown, field, [ast.Pass()] if field == "body" else [])
    return ast.unparse(shown)


def mutants(root: Path) -> list[dict[str, Any]]:
    """All mutants of the package; `identity` is the same in every version that has the statement."""
    found = []
    for path in sorted((root / "hf_blemo").rglob("*.py")):
        for name, statement in _statements(ast.parse(path.read_text(encoding="utf-8"))):
            changes = [change for node in _expressions(statement) for change in mutations(node)]
            for place, (kind, old, new) in enumerate(changes):
                span = (old.lineno, old.col_offset, old.end_lineno, old.end_col_offset)
                identity = [name, _header(statement), place]
                shown = f"{ast.unparse(old)} -> {ast.unparse(new)}"
                file = path.relative_to(root).as_posix()
                found.append(
                    {"file": file, "span": span, "kind": kind, "change": shown, "identity": identity}
                    | {"new": f"({ast.unparse(new)})"}
                )
    return found


def spliced(text: str, span: tuple[int, int, int, int], new: str) -> str:
    """A text with another expression in the place of one."""
    lines = text.encode("utf-8").splitlines(keepends=True)
    first, start, last, end = span
    before, after = lines[first - 1][:start], lines[last - 1][end:]
    lines[first - 1 : last] = [before + new.encode("utf-8") + after]
    return b"".join(lines).decode("utf-8")


def tests_of(coverage_file: Path, path: Path, line: int) -> list[str]:
    """Tests that executed a line."""
    from coverage import CoverageData

    data = CoverageData(str(coverage_file))
    data.read()
    contexts = data.contexts_by_lineno(str(path)).get(line, [])
    return sorted({context.split("|")[0] for context in contexts if context})


def killed_by(tests: list[str], root: Path, timeout: float) -> str | None:
    """The first test that fails, or None."""
    if not tests:
        return None
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--no-header", *tests]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return "timeout"
    if done.returncode == 0:
        return None
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return failed[0] if failed else f"exit {done.returncode}: {done.stdout[-300:]}"


def tried(mutant: dict[str, Any], coverage_file: Path, timeout: float) -> str:
    """What the tests make of a mutant: those of its own room first, then all others that reach its line."""
    path = ROOT / mutant["file"]
    tests = tests_of(coverage_file, path, mutant["span"][0])
    room = "tests/" + path.relative_to(ROOT / "hf_blemo").parts[0].removesuffix(".py") + "/"
    own = [test for test in tests if test.startswith(room)]
    original = path.read_text(encoding="utf-8")
    path.write_text(spliced(original, mutant["span"], mutant["new"]), encoding="utf-8")
    try:
        for name, chosen in (("own room", own), ("suite", [test for test in tests if test not in own])):
            killer = killed_by(chosen, ROOT, timeout)
            if killer is not None:
                return f"killed, {name}: {killer}"
    finally:
        path.write_text(original, encoding="utf-8")
    return f"survived {len(tests)} tests"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=30)
    parser.add_argument("--seed", type=int, default=12)
    parser.add_argument("--only", type=Path, help="results of another version, whose mutants are tried here")
    parser.add_argument("--coverage", type=Path, default=ROOT / ".coverage")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--timeout", type=float, default=900)
    options = parser.parse_args()
    here = mutants(ROOT)
    places: dict[str, list[dict[str, Any]]] = {}
    for mutant in here:
        places.setdefault(json.dumps(mutant["identity"]), []).append(mutant)
    if options.only:
        drawn = json.loads(options.only.read_text(encoding="utf-8"))
    else:
        unique = [mutant for mutant in here if len(places[json.dumps(mutant["identity"])]) == 1]
        drawn = random.Random(options.seed).sample(unique, options.number)
    results = []
    for number, mutant in enumerate(drawn):
        start = time.perf_counter()
        found = places.get(json.dumps(mutant["identity"]), [])
        if len(found) != 1:
            mutant = {**mutant, "result": f"not in this version: {len(found)} places"}
        else:
            mutant = dict(found[0])
            mutant["result"] = tried(mutant, options.coverage, options.timeout)
        results.append(mutant)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(results, indent=1), encoding="utf-8")
        seconds = time.perf_counter() - start
        print(f"{number + 1:3} {mutant['file']}:{mutant['span'][0]} {mutant['kind']:<10} {seconds:5.0f} s", flush=True)
        print(f"    {mutant['change'][:150]}\n    {mutant['result'][:150]}", flush=True)


if __name__ == "__main__":
    main()
