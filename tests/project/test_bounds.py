"""Every number that bounds something has a name, and a test that uses the name."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: Numbers that bound nothing: what they are instead, and their names.
NO_BOUNDS = {
    "a unit": "config.tuning.MIB systemd._MICROSECONDS",
    "a default": "tap.DEFAULT_PORT",
    "the version of a format": "mcp.request_state._VERSION",
    "columns of a report": "check.report.WIDTH check.report._COLUMN",
    "columns of the help": "config.command_help._COLUMN config.command_help._NARROWEST"
    " config.command_help._WIDEST",
    "how similar two names are": "config.foreign._NEAR config.file._NEAR_AT_TOP",
    "the prefix length of a network": "web.client_addresses.IPV6_PREFIX",
    "the tolerance of sums of fractions": "processes.address_shares._NOTHING",
    "how many bytes are random": "mcp.tasks._OWNER_BYTES stateless.suspended_calls.HANDLE_BYTES"
    " stateless.suspended_calls.KEY_BYTES",
    "a number of Linux": "stdio.exec_shim._RLIMIT_LOCKS stdio.leader._CORE_DUMPED"
    " stdio.prctl._PR_CAP_AMBIENT stdio.prctl._PR_CAP_AMBIENT_CLEAR_ALL"
    " stdio.prctl._PR_SET_CHILD_SUBREAPER stdio.prctl._PR_SET_PDEATHSIG"
    " stdio.process_tags.RLIMIT_LOCKS stdio.process_tags._CAP_SYS_PTRACE",
    "reached by no error of the parser": "jsonrpc.malformed_output._PROBLEM_CHARS",
}


def is_number(node: ast.expr | None, known: set[str]) -> bool:
    match node:
        case ast.Constant(value):
            return isinstance(value, int | float) and value is not True and value > 0
        case ast.BinOp(left, _, right):
            return is_number(left, known) and is_number(right, known)
    return isinstance(node, ast.Name) and node.id in known


def numbers(path: Path) -> set[str]:
    """Return the constants of a module that are positive numbers, or made of imported ones."""
    found, imported = set[str](), set[str]()
    for node in ast.parse(path.read_text()).body:
        pairs: list[tuple[ast.expr, ast.expr | None]] = []
        match node:
            case ast.ImportFrom(_, aliases):
                imported |= {alias.name for alias in aliases if alias.name.isupper()}
            case ast.Assign([ast.Tuple(names)], ast.Tuple(values)):
                pairs = list(zip(names, values, strict=True))
            case ast.Assign([name], value) | ast.AnnAssign(name, _, value):
                pairs = [(name, value)]
        for target, value in pairs:
            if isinstance(target, ast.Name) and target.id.isupper():
                known = found | (imported if isinstance(value, ast.BinOp) else set())
                if is_number(value, known):
                    found.add(target.id)
    return found


def named(path: Path) -> set[str]:
    """Return the names in capitals that a test uses, with the module that it has each from."""
    tree = ast.parse(path.read_text())
    modules, found = dict[str, str](), set[str]()
    for each in ast.walk(tree):
        match each:
            case ast.ImportFrom(str(module), aliases):
                for alias in aliases:
                    modules[alias.asname or alias.name] = f"{module}.{alias.name}"
                    found.add(f"{module}.{alias.name}")
    for each in ast.walk(tree):
        match each:
            case ast.Attribute(ast.Name(owner), name) if owner in modules:
                found.add(f"{modules[owner]}.{name}")
            case ast.Call(
                ast.Attribute(_, "setattr"), [ast.Name(owner), ast.Constant(str(name)), *_]
            ):
                found.add(f"{modules.get(owner)}.{name}")
            case ast.Call(ast.Attribute(_, "setattr"), [ast.Constant(str(name)), *_]):
                found.add(name)
    return found


def test_every_bound_is_named_by_a_test() -> None:
    """Codes of JSON-RPC are negative, and no bounds."""
    bounds, origins, tested = set[str](), dict[str, str](), set[str]()
    for path in (ROOT / "mcpbridge").rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        bounds |= {f"{module}.{name}" for name in numbers(path)}
        origins |= {f"{module}.{each.rpartition('.')[2]}": each for each in named(path)}
    for path in (ROOT / "tests").rglob("test_*.py"):
        # A test may replace a number where it is used.
        tested |= {origins.get(each, each) for each in named(path)}
    untested = {bound.removeprefix("mcpbridge.") for bound in bounds - tested}
    assert untested == set(" ".join(NO_BOUNDS.values()).split())
