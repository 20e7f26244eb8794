"""What is written for agents, all of a kind: what comes with this program, and a user's own.

A folder is read whenever somebody asks, so what lies there holds at once. What is the user's takes
the place of what ships under its name, and keeps that one's aliases. A file that cannot be read
takes away nothing but what has its name. Not for the event loop. Above are roles and teams.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Generic, TypeVar

from microvm_orchestrator import errors
from microvm_orchestrator.model.agent_role import BrokenFile, Source, WrittenForAgents

T = TypeVar("T", bound=WrittenForAgents)
B = TypeVar("B", bound=WrittenForAgents)

_ENDING = ".md"
# More than any has, however it is encoded.
_MAX_BYTES = 1 << 18

Parse = Callable[[str, str, Source], T]


@dataclass(frozen=True, slots=True)
class Shelf(Generic[T]):
    """All there are of a kind at a moment."""

    # What one of them is called.
    what: str
    # In the order of their names.
    known: Mapping[str, T]
    # What each alias leads to.
    aliases: Mapping[str, str]
    # By the name that it would have.
    broken: Mapping[str, BrokenFile]

    def find(self, word: str) -> T:
        """Find one by its name or an alias.

        Raises: InvalidInput when its file is broken; NotFound, with the names there are.
        """
        name = self.aliases.get(word, word)
        if name in self.broken:
            broken = self.broken[name]
            raise errors.InvalidInput(
                f"the {self.what} {name[:100]}: {broken.file}: {broken.reason}"
            )
        if name not in self.known:
            raise errors.NotFound(
                f"no {self.what} {word[:100]}", hint=f"there are: {', '.join(self.known)}"
            )
        return self.known[name]

    def briefs(self, brief: type[B]) -> list[B]:
        """Give all there are, with so much of each as stands in a list."""
        fields = set(brief.model_fields)
        return [
            brief.model_validate(each.model_dump(include=fields)) for each in self.known.values()
        ]


def fill_shelf(what: str, shipped: Mapping[str, T], folder: Path, parse: Parse[T]) -> Shelf[T]:
    """Read all of a kind; a folder that is not there has none."""
    own: dict[str, T] = {}
    broken: dict[str, BrokenFile] = {}
    for path in _files(folder, broken):
        try:
            own[path.stem] = parse(path.stem, _read(path), Source.USER)
        except errors.InvalidInput as error:
            broken[path.stem] = BrokenFile(file=_shown(path), reason=error.message)
    names = {*shipped, *own, *broken}
    aliases: dict[str, str] = {}
    for each in list(own.values()):
        taken = next((word for word in each.aliases if word in names or word in aliases), None)
        if taken is None:
            aliases |= dict.fromkeys(each.aliases, each.name)
            continue
        other = f"an alias of {aliases[taken]}" if taken in aliases else f"the name of a {what}"
        del own[each.name]
        broken[each.name] = BrokenFile(
            file=each.name + _ENDING, reason=f"its alias {taken} is {other} already"
        )
    for each in shipped.values():
        for alias in each.aliases:
            if alias not in names:
                aliases.setdefault(alias, each.name)
    known = {name: each for name, each in {**shipped, **own}.items() if name not in broken}
    return Shelf(
        what, {name: _named(known[name], aliases) for name in sorted(known)}, aliases, broken
    )


def _named(each: T, aliases: Mapping[str, str]) -> T:
    """Give it the aliases that lead to it."""
    own = sorted(alias for alias, name in aliases.items() if name == each.name)
    return each.model_copy(update={"aliases": tuple(own)})


def read_shipped(package: str, parse: Parse[T]) -> dict[str, T]:
    """Read what comes with this program, by the names."""
    folder = resources.files(package) / "shipped"
    found = (
        parse(file.name.removesuffix(_ENDING), file.read_text("utf-8"), Source.SHIPPED)
        for file in folder.iterdir()
        if file.name.endswith(_ENDING)
    )
    return {each.name: each for each in sorted(found, key=lambda each: each.name)}


def _files(folder: Path, broken: dict[str, BrokenFile]) -> Iterator[Path]:
    """Give the files in a folder; one that cannot be listed is told as broken."""
    try:
        found = sorted(folder.iterdir())
    except FileNotFoundError:
        return
    except OSError as error:
        # Nothing can have this name.
        reason = f"the folder cannot be read: {error.strerror}"
        broken["."] = BrokenFile(file=_shown(folder), reason=reason)
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
