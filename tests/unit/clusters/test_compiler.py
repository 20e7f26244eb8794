"""What a build complains of, in the words of each tool, and that hostile output does no harm."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microvm_orchestrator.clusters.compiler import MAX_DIAGNOSTICS, Severity, diagnose

# What is said; severity, file, line, column, code, and the message's beginning.
SAID: list[tuple[str, tuple[str, str | None, int | None, int | None, str | None, str]]] = [
    (
        "main.c:3:5: error: \u2018x\u2019 undeclared (first use in this function)",
        ("error", "main.c", 3, 5, None, "\u2018x\u2019 undeclared"),
    ),
    (
        "src/a b.c:1:1: error: no",  # a name with a space cannot be told from words before it
        ("none", None, None, None, None, ""),
    ),
    (
        "drivers/net/foo.c:118:13: warning: unused variable \u2018y\u2019 [-Wunused-variable]",
        (
            "warning",
            "drivers/net/foo.c",
            118,
            13,
            "-Wunused-variable",
            "unused variable \u2018y\u2019",
        ),
    ),
    (
        "a.c:9:2: error: implicit declaration of 'f' [-Werror=implicit-function-declaration]",
        ("error", "a.c", 9, 2, "-Wimplicit-function-declaration", "implicit declaration"),
    ),
    (
        "a.c:9:2: error: call to undeclared function 'f' [-Werror,-Wimplicit-function-declaration]",
        ("error", "a.c", 9, 2, "-Wimplicit-function-declaration", "call to undeclared"),
    ),
    (
        "main.c:1:10: fatal error: nothere.h: No such file or directory",
        ("error", "main.c", 1, 10, None, "nothere.h: No such file"),
    ),
    ("a.h:4:6: note: declared here", ("note", "a.h", 4, 6, None, "declared here")),
    ("a.c:7: error: old gcc knows no column", ("error", "a.c", 7, None, None, "old gcc")),
    ("x.s:3: Error: no such instruction: `mv'", ("error", "x.s", 3, None, None, "no such")),
    ("cc1: all warnings being treated as errors", ("error", None, None, None, None, "all warn")),
    (
        "cc1plus: error: unrecognized command-line option \u2018-fx\u2019",
        ("error", None, None, None, None, "unrecognized command-line"),
    ),
    ("gcc: fatal error: no input files", ("error", None, None, None, None, "no input files")),
    (
        "clang-14: error: linker command failed with exit code 1 (use -v to see invocation)",
        ("error", None, None, None, None, "linker command failed"),
    ),
    (
        "collect2: error: ld returned 1 exit status",
        ("error", None, None, None, None, "ld returned 1"),
    ),
    (
        "main.c:(.text+0x5): undefined reference to `foo'",
        ("error", "main.c", None, None, None, "undefined reference to `foo'"),
    ),
    (
        "/usr/bin/ld: main.o:/src/main.c:12: undefined reference to `foo'",
        ("none", None, None, None, None, ""),
    ),
    (
        "/usr/bin/ld: /src/main.c:12: undefined reference to `foo'",
        ("error", "/src/main.c", 12, None, None, "undefined reference to `foo'"),
    ),
    (
        "/usr/bin/x86_64-linux-gnu-ld: cannot find -lnothere: No such file or directory",
        ("error", None, None, None, None, "cannot find -lnothere"),
    ),
    (
        "ld.lld: error: undefined symbol: foo",
        ("error", None, None, None, None, "undefined symbol: foo"),
    ),
    (
        "/usr/bin/ld: warning: x.o: missing .note.GNU-stack section implies executable stack",
        ("warning", None, None, None, None, "x.o: missing .note"),
    ),
    (
        "make[2]: *** [scripts/Makefile.build:250: drivers/net/foo.o] Error 1",
        ("error", "scripts/Makefile.build", 250, None, None, "drivers/net/foo.o] Error 1"),
    ),
    (
        "make: *** No rule to make target 'x', needed by 'all'.  Stop.",
        ("error", None, None, None, None, "No rule to make target 'x'"),
    ),
    (
        "Makefile:3: *** missing separator.  Stop.",
        ("error", "Makefile", 3, None, None, "missing separator"),
    ),
    (
        "Makefile:5: warning: overriding recipe for target 'x'",
        ("warning", "Makefile", 5, None, None, "overriding recipe"),
    ),
    (
        "make: warning:  Clock skew detected.  Your build may be incomplete.",
        ("warning", None, None, None, None, "Clock skew detected"),
    ),
    (
        'ERROR: modpost: "foo" [drivers/net/bar.ko] undefined!',
        ("error", None, None, None, None, '"foo" [drivers/net/bar.ko] undefined!'),
    ),
    (
        "WARNING: modpost: missing MODULE_LICENSE() in bad.o",
        ("warning", None, None, None, None, "missing MODULE_LICENSE()"),
    ),
    ("/bin/sh: 1: flex: not found", ("error", None, None, None, None, "flex: not found")),
    ("bash: line 1: bison: command not found", ("error", None, None, None, None, "bison: comm")),
    (
        "error[E0425]: cannot find value `x` in this scope\n --> src/main.rs:2:5\n  |\n",
        ("error", "src/main.rs", 2, 5, "E0425", "cannot find value `x`"),
    ),
    (
        "warning: unused variable: `y`\n  --> src/lib.rs:10:9\n   |\n",
        ("warning", "src/lib.rs", 10, 9, None, "unused variable: `y`"),
    ),
    (
        'error: could not compile `foo` (bin "foo") due to 1 previous error',
        ("error", None, None, None, None, "could not compile `foo`"),
    ),
    (
        "\x1b[01m\x1b[Kmain.c:3:5:\x1b[m\x1b[K \x1b[31merror: \x1b[m\x1b[Kexpected \u2018;\u2019",
        ("error", "main.c", 3, 5, None, "expected \u2018;\u2019"),
    ),
    ("In file included from main.c:1:", ("none", None, None, None, None, "")),
    ("main.c: In function \u2018main\u2019:", ("none", None, None, None, None, "")),
    ("  CC [M]  drivers/net/error.o", ("none", None, None, None, None, "")),
    ("checking for working error handling... yes", ("none", None, None, None, None, "")),
    ("make: *** Waiting for unfinished jobs....", ("none", None, None, None, None, "")),
    ("gcc -Werror -o error.o -c error.c", ("none", None, None, None, None, "")),
    ("12:00:01: error: a log is no compiler", ("none", None, None, None, None, "")),
    ("0 warnings and 0 errors generated.", ("none", None, None, None, None, "")),
]


@pytest.mark.parametrize(("text", "means"), SAID)
def test_a_complaint_is_read_in_each_tools_words(
    text: str, means: tuple[str, str | None, int | None, int | None, str | None, str]
) -> None:
    found = diagnose(f"  CC  x.o\n{text}\r\n  LD  y\n".encode()).diagnostics
    severity, file, line, column, code, message = means
    if severity == "none":
        assert found == ()
        return
    (told,) = found
    assert (told.severity, told.file, told.line) == (severity, file, line)
    assert (told.column, told.code) == (column, code)
    assert told.message.startswith(message)


def test_a_build_is_told_in_its_order_and_the_same_once() -> None:
    output = (
        "a.c:1:1: warning: w [-Wx]\n"
        "a.c:2:1: error: e\n"
        "a.c:1:1: warning: w [-Wx]\n"
        "make: *** [Makefile:2: a.o] Error 1\n"
        "error: no place follows"
    )
    told = diagnose(output.encode())
    assert [each.severity for each in told.diagnostics] == ["warning", "error", "error", "error"]
    assert (told.errors, told.warnings, told.cut) == (3, 1, False)


def test_of_too_many_the_errors_are_kept() -> None:
    many = [f"a.c:{number}:1: warning: w" for number in range(1, 2000)] + ["a.c:1:1: error: e"]
    told = diagnose("\n".join(many).encode())
    assert (len(told.diagnostics), told.errors, told.warnings) == (MAX_DIAGNOSTICS, 1, 1999)
    assert told.cut
    assert told.diagnostics[-1].severity is Severity.ERROR


words = st.sampled_from(
    [
        *("a.c", ":", "1", ": ", "error", "warning: ", "*** [", "] Error 1", "\n", " --> ", "ld: "),
        *("undefined reference to", "\x1b[", "make", "error[E1]: ", "(.text+0x1)", "é", "\x00"),
    ]
)


@given(st.lists(words | st.text(max_size=5), max_size=40).map("".join))
def test_nothing_that_a_build_says_breaks_it(text: str) -> None:
    for told in diagnose(text.encode(errors="replace")).diagnostics:
        assert told.message.isprintable()
        assert told.file is None or told.file.isprintable()


@pytest.mark.parametrize(
    "line", ["a" * 4000 + ":1: error", "a:" * 2000, "/-" * 2000 + "ld: ", " " * 4000]
)
def test_no_line_takes_long(line: str) -> None:
    # A reader that tried every way through such lines would not come back today.
    assert diagnose(f"{line} error: undefined\n".encode() * 200) is not None
