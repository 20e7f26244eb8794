"""What a Nix file means by its names: whether it parses, and which names nobody has defined.

Nix itself says so too, but is not at hand everywhere. Names below a `with` may come from it, so
those that are free there pass, as they do with Nix. Stands on the grammar of tree-sitter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tree_sitter_nix
from tree_sitter import Language, Node, Parser

LANGUAGE = Language(tree_sitter_nix.language())
# The names that Nix has in every file.
GLOBAL = frozenset(
    (
        *("abort", "baseNameOf", "break", "builtins", "derivation", "derivationStrict", "dirOf"),
        *("false", "fetchGit", "fetchMercurial", "fetchTarball", "fetchTree", "fromTOML", "import"),
        *("isNull", "map", "null", "placeholder", "removeAttrs", "scopedImport", "throw"),
        *("toString", "true"),
    )
)
# The grammar does not know that a comma may stand behind the last argument.
_LAST_COMMA = re.compile(rb",(?=(?:\s|#.*\n)*\}\s*[:@])")


@dataclass(frozen=True, slots=True)
class Fault:
    """Something wrong in a file, and on which line."""

    line: int
    what: str


@dataclass(frozen=True, slots=True)
class Scope:
    """The names that are known at some place, and whether a `with` may know more."""

    names: frozenset[str] = GLOBAL
    is_open: bool = False

    def knowing(self, names: Iterator[str]) -> Scope:
        return Scope(self.names | frozenset(names), self.is_open)


def faults(text: bytes) -> list[Fault]:
    """Tell what is wrong in a file; nothing where all is well."""
    root = Parser(LANGUAGE).parse(_LAST_COMMA.sub(b" ", text)).root_node
    if root.has_error:
        return [Fault(node.start_point[0] + 1, "syntax error") for node in _broken(root)]
    return list(_undefined(root, Scope()))


def faults_of(path: Path) -> list[str]:
    return [f"{path}:{fault.line}: {fault.what}" for fault in faults(path.read_bytes())]


def _broken(node: Node) -> Iterator[Node]:
    if node.is_error or node.is_missing:
        yield node
    else:
        for child in node.children:
            yield from _broken(child)


def _undefined(node: Node, scope: Scope) -> Iterator[Fault]:
    match node.type:
        case "variable_expression":
            yield from _name(node, scope)
        case "function_expression":
            yield from _function(node, scope)
        case "let_expression" | "rec_attrset_expression" | "let_attrset_expression":
            yield from _twice(node)
            inner = scope.knowing(_bound(node))
            for binding in _bindings(node):
                yield from _binding(binding, scope, inner)
            if body := node.child_by_field_name("body"):
                yield from _undefined(body, inner)
        case "attrset_expression":
            yield from _twice(node)
            for binding in _bindings(node):
                yield from _binding(binding, scope, scope)
        case "with_expression":
            environment, body = _field(node, "environment"), _field(node, "body")
            yield from _undefined(environment, scope)
            yield from _undefined(body, Scope(scope.names, is_open=True))
        case _:
            # The names of attributes are identifiers and no variables.
            for child in node.named_children:
                yield from _undefined(child, scope)


def _function(node: Node, scope: Scope) -> Iterator[Fault]:
    formals = node.child_by_field_name("formals")
    parts = [part for part in formals.named_children if part.type == "formal"] if formals else []
    names = [_text(_field(part, "name")) for part in parts]
    if whole := node.child_by_field_name("universal"):
        names.append(_text(whole))
    for twice in sorted({name for name in names if names.count(name) > 1}):
        yield Fault(_line(node), f"the argument {twice} is there twice")
    inner = scope.knowing(iter(names))
    for part in parts:
        if default := part.child_by_field_name("default"):
            yield from _undefined(default, inner)
    yield from _undefined(_field(node, "body"), inner)


def _binding(node: Node, outer: Scope, inner: Scope) -> Iterator[Fault]:
    match node.type:
        case "inherit":
            # What is inherited comes from around, not from beside.
            for name in _inherited(node):
                yield from _name(name, outer)
        case "inherit_from":
            yield from _undefined(_field(node, "expression"), inner)
        case _:
            for child in node.named_children:
                yield from _undefined(child, inner)


def _name(node: Node, scope: Scope) -> Iterator[Fault]:
    name = _text(node)
    is_plain = node.type != "string_expression"
    if is_plain and not scope.is_open and name not in scope.names and not name.startswith("__"):
        yield Fault(_line(node), f"undefined variable {name}")


def _twice(node: Node) -> Iterator[Fault]:
    seen: dict[str, bool] = {}
    for binding in _bindings(node):
        if binding.type == "binding":
            # Two sets under one name are one set.
            is_set = _field(binding, "expression").type == "attrset_expression"
            names = [_text(_field(binding, "attrpath"))]
        else:
            is_set, names = False, [_text(name) for name in _inherited(binding)]
        for name in names:
            if name in seen and not (seen[name] and is_set):
                yield Fault(_line(binding), f"{name} is defined twice")
            seen[name] = is_set


def _bindings(node: Node) -> Iterator[Node]:
    for part in node.named_children:
        if part.type == "binding_set":
            yield from (child for child in part.named_children if child.type != "comment")


def _bound(node: Node) -> Iterator[str]:
    for binding in _bindings(node):
        if binding.type == "binding":
            first = _field(binding, "attrpath").named_children[0]
            yield _text(first).strip('"')
        else:
            yield from (_text(name) for name in _inherited(binding))


def _inherited(node: Node) -> list[Node]:
    return _field(node, "attrs").named_children


def _field(node: Node, name: str) -> Node:
    found = node.child_by_field_name(name)
    assert found is not None, f"{node.type} without {name}"
    return found


def _text(node: Node) -> str:
    assert node.text is not None
    return node.text.decode()


def _line(node: Node) -> int:
    return node.start_point[0] + 1
