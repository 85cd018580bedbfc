"""Every number that bounds something has a name, and a test that uses the name."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: Numbers that bound nothing: what they are instead, and their names.
NO_BOUNDS = {
    "a unit": "config.tuning.MIB",
    "a default": "tap.DEFAULT_PORT",
    "the version of a format": "mcp.request_state._VERSION",
    "columns of the help": "config.command_help._COLUMN config.command_help._NARROWEST"
    " config.command_help._WIDEST",
    "how similar two names are": "config.file._NEAR config.file._NEAR_AT_TOP",
    "the prefix length of a network": "web.client_addresses.IPV6_PREFIX",
    "the tolerance of sums of fractions": "processes.address_shares._NOTHING",
    "how many bytes are random": "mcp.tasks._OWNER_BYTES stateless.suspended_calls.HANDLE_BYTES"
    " stateless.suspended_calls.KEY_BYTES",
    "a number of Linux": "stdio.exec_shim._RLIMIT_LOCKS stdio.leader._CORE_DUMPED"
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


def test_every_bound_is_named_by_a_test() -> None:
    """By one that imports its module, too.  Codes of JSON-RPC are negative, and no bounds."""
    bounds, tested = set[str](), set[str]()
    for path in (ROOT / "mcpbridge").rglob("*.py"):
        module, numbers = ".".join(path.relative_to(ROOT).with_suffix("").parts), set[str]()
        for node in ast.parse(path.read_text()).body:
            match node:
                case ast.Assign([ast.Name(name)], value) | ast.AnnAssign(ast.Name(name), _, value):
                    if name.isupper() and is_number(value, numbers):
                        numbers.add(name)
        bounds |= {f"{module}.{name}" for name in numbers}
    for path in (ROOT / "tests").rglob("test_*.py"):
        modules, names = set[str](), set[str]()
        for each in ast.walk(ast.parse(path.read_text())):
            match each:
                case ast.ImportFrom(str(module), aliases):
                    names |= {alias.name for alias in aliases}
                    modules |= {module, *(f"{module}.{alias.name}" for alias in aliases)}
                case ast.Name(name) | ast.Attribute(_, name) | ast.Constant(str(name)):
                    names.add(name)
        tested |= {f"{module}.{name}" for module in modules for name in names if name.isupper()}
    untested = {bound.removeprefix("mcpbridge.") for bound in bounds - tested}
    assert untested == set(" ".join(NO_BOUNDS.values()).split())
