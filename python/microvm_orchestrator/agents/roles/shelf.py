"""All roles there are: those that come with this program, and those in a folder of its user.

The folder is read whenever somebody asks, so what lies there holds at once. A role of the user
takes the place of a shipped one of its name, and keeps that one's aliases. A file that cannot be
read takes away nothing but the role of its name. Not for the event loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from microvm_orchestrator import errors
from microvm_orchestrator.agents.roles.text import parse_role
from microvm_orchestrator.model.agent_role import AgentRole, BrokenRole, Source

_ENDING = ".md"
# More than any role has, however it is encoded.
_MAX_BYTES = 1 << 18


@dataclass(frozen=True, slots=True)
class Shelf:
    """The roles there are at a moment."""

    # In the order of their names.
    roles: Mapping[str, AgentRole]
    # What each alias leads to.
    aliases: Mapping[str, str]
    # By the name that the role would have.
    broken: Mapping[str, BrokenRole]

    def find(self, word: str) -> AgentRole:
        """Find a role by its name or an alias.

        Raises: InvalidInput when its file is broken; NotFound, with the names there are.
        """
        name = self.aliases.get(word, word)
        if name in self.broken:
            broken = self.broken[name]
            raise errors.InvalidInput(f"the role {name[:100]}: {broken.file}: {broken.reason}")
        if name not in self.roles:
            raise errors.NotFound(
                f"no role {word[:100]}", hint=f"there are: {', '.join(self.roles)}"
            )
        return self.roles[name]


def read_shelf(folder: Path) -> Shelf:
    """Read all roles; a folder that is not there has none."""
    own: dict[str, AgentRole] = {}
    broken: dict[str, BrokenRole] = {}
    for path in _files(folder, broken):
        try:
            own[path.stem] = parse_role(path.stem, _read(path), Source.USER)
        except errors.InvalidInput as error:
            broken[path.stem] = BrokenRole(file=_shown(path), reason=error.message)
    shipped = shipped_roles()
    names = {*shipped, *own, *broken}
    aliases: dict[str, str] = {}
    for role in list(own.values()):
        taken = next((each for each in role.aliases if each in names or each in aliases), None)
        if taken is None:
            aliases |= dict.fromkeys(role.aliases, role.name)
            continue
        other = f"an alias of {aliases[taken]}" if taken in aliases else "the name of a role"
        del own[role.name]
        broken[role.name] = BrokenRole(
            file=role.name + _ENDING, reason=f"its alias {taken} is {other} already"
        )
    for role in shipped.values():
        for alias in role.aliases:
            if alias not in names:
                aliases.setdefault(alias, role.name)
    roles = {name: role for name, role in (shipped | own).items() if name not in broken}
    return Shelf({name: _named(roles[name], aliases) for name in sorted(roles)}, aliases, broken)


def _named(role: AgentRole, aliases: Mapping[str, str]) -> AgentRole:
    """Give a role the aliases that lead to it."""
    own = sorted(alias for alias, name in aliases.items() if name == role.name)
    return role.model_copy(update={"aliases": tuple(own)})


@cache
def shipped_roles() -> dict[str, AgentRole]:
    """The roles that come with this program, by their names."""
    folder = resources.files("microvm_orchestrator.agents.roles") / "shipped"
    found = (
        parse_role(file.name.removesuffix(_ENDING), file.read_text("utf-8"), Source.SHIPPED)
        for file in folder.iterdir()
        if file.name.endswith(_ENDING)
    )
    return {role.name: role for role in sorted(found, key=lambda role: role.name)}


def _files(folder: Path, broken: dict[str, BrokenRole]) -> Iterator[Path]:
    """Give the files of roles in a folder; one that cannot be listed is told as broken."""
    try:
        found = sorted(folder.iterdir())
    except FileNotFoundError:
        return
    except OSError as error:
        # No role can have this name.
        reason = f"the folder cannot be read: {error.strerror}"
        broken["."] = BrokenRole(file=_shown(folder), reason=reason)
        return
    yield from (path for path in found if path.suffix == _ENDING)


def _shown(path: Path) -> str:
    """Write a name as everybody can read it, whatever its bytes are."""
    return path.name.encode(errors="backslashreplace").decode()


def _read(path: Path) -> str:
    """Raises: InvalidInput."""
    try:
        if not path.is_file():
            # Nobody may ever write into a pipe.
            raise errors.InvalidInput("is no file")
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise errors.InvalidInput(f"has more than {_MAX_BYTES} bytes")
        return content.decode()
    except UnicodeDecodeError:
        raise errors.InvalidInput("is not UTF-8") from None
    except OSError as error:
        raise errors.InvalidInput(f"cannot be read: {error.strerror}") from error
