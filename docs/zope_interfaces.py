"""
A Sphinx extension that documents zope interfaces: `.. zope-interfaces:: MODULE`.

Sphinx takes an interface for an object like any other, as it is no class, and
shows none of its methods.  repoze.sphinx.autointerface knows interfaces, but
builds on the documenter classes that Sphinx 9 has replaced, and leaves out
annotations, because zope keeps none.  pydoctor knows interfaces too, but makes
a site of its own instead of pages in this one.  So this directive reads the
module's source: all its interfaces, in order, with annotated signatures.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from docutils import nodes
from sphinx.domains import ObjType
from sphinx.domains.python import PyClasslike, PythonDomain
from sphinx.util.docutils import SphinxDirective


class InterfaceDescription(PyClasslike):  # type: ignore[misc]
    """`.. py:interface::`, a class whose signature begins with "interface"."""


class ZopeInterfaces(SphinxDirective):  # type: ignore[misc]
    """Document every interface that a module defines."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Describe the interfaces in reStructuredText, and parse that."""
        [name] = self.arguments
        module = import_module(name)
        self.env.note_dependency(module.__file__)
        lines = [f".. py:currentmodule:: {name}", ""]
        for node in ast.parse(inspect.getsource(module)).body:
            if isinstance(node, ast.ClassDef):
                lines += describe(node)
        found: list[nodes.Node] = self.parse_text_to_nodes("\n".join(lines))
        return found


def describe(interface: ast.ClassDef) -> Iterator[str]:
    """Yield the description of an interface and its members."""
    yield f".. py:interface:: {interface.name}"
    yield ""
    bases = [ast.unparse(base) for base in interface.bases]
    extended = [f"`{base}`" for base in bases if base != "Interface"]
    if extended:
        yield f"   Extends {', '.join(extended)}."
        yield ""
    yield from _indented(ast.get_docstring(interface))
    for member in interface.body:
        match member:
            case ast.FunctionDef():
                returns = f" -> {ast.unparse(member.returns)}" if member.returns else ""
                yield f"   .. py:method:: {member.name}({ast.unparse(member.args)}){returns}"
                yield ""
                yield from _indented(ast.get_docstring(member), "      ")
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call(args=[text])):
                yield f"   .. py:attribute:: {name}"
                yield ""
                yield from _indented(inspect.cleandoc(ast.literal_eval(text)), "      ")
            case ast.Expr():
                pass  # the docstring
            case _:
                raise ValueError(f"{interface.name}: cannot describe {ast.unparse(member)}")


def _indented(text: str | None, indent: str = "   ") -> Iterator[str]:
    for line in (text or "").splitlines():
        yield f"{indent}{line}"
    yield ""


def setup(app: Any) -> dict[str, Any]:
    """Register both directives, and let references to classes find interfaces."""
    kinds = {**PythonDomain.object_types, "interface": ObjType("interface", "class", "obj")}
    app.add_domain(type("PythonDomain", (PythonDomain,), {"object_types": kinds}), override=True)
    app.add_directive_to_domain("py", "interface", InterfaceDescription)
    app.add_directive("zope-interfaces", ZopeInterfaces)
    return {"parallel_read_safe": True}
