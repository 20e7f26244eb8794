"""Of the table: texts that something reads on: addresses of webhooks, templates, patterns."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from system.row import Row, row

if TYPE_CHECKING:
    from collections.abc import Iterator


def outwards() -> Iterator[Row]:
    """Addresses that lead inside, written so that a careless reader does not see it."""
    for url in (
        "file:///etc/passwd",
        "ftp://example.com/",
        "gopher://example.com/",
        "javascript:alert(1)",
        "http://",
        "//example.com/x",
        "example.com",
        "http://localhost/",
        "http://127.0.0.1/",
        "http://127.1/",
        "http://2130706433/",
        "http://0177.0.0.1/",
        "http://0x7f.0.0.1/",
        "http://0/",
        "http://[::]/",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:10.0.0.1]/",
        "http://[64:ff9b::7f00:1]/",
        "http://[2002:7f00:1::]/",
        "http://[fe80::1%25lo]/",
        "http://[fd00::1]/",
        "http://10.0.0.1/",
        "http://169.254.169.254/latest/meta-data/",
        "http://100.64.0.1/",
        "http://224.0.0.1/",
        "http://255.255.255.255/",
        "http://127\u30020\u30020\u30021/",
        # In digits of full width.
        "http://\uff11\uff12\uff17.0.0.1/",
        "http://user:secret@192.0.2.1/",
        "http://192.0.2.1:0/",
        "http://192.0.2.1:65536/",
        "http://192.0.2.1:-1/",
        "http://192.0.2.1:x/",
        "http://a b/",
        "http://exa\nmple.com/",
        "http://\0/",
        "http://127.0.0.1#@example.com/",
        "http://127.0.0.1\\@example.com/",
        "http://" + "a" * 64 + ".example/",
    ):
        yield row(
            f"a webhook to {url[:40]!r}",
            "target-refused",
            "webhook_create",
            url=url,
            _words=None if "\0" in url else ("webhook", "create", url),
        )
    yield row(
        "a webhook to 2,001 letters", "too-large", "webhook_create", url="http://" + "a" * 2000
    )
    yield row(
        "a webhook with a short secret",
        "invalid-input",
        "webhook_create",
        url="http://192.0.2.1/",
        secret="short",
    )
    yield row(
        "a webhook for a kind with a space",
        "invalid-input",
        "webhook_create",
        url="http://192.0.2.1/",
        kinds=["task. done"],
    )


def templates() -> Iterator[Row]:
    def save(name: str, code: str, **template: Any) -> Row:
        plain: dict[str, Any] = {"tasks": [{"title": "{{x}}"}], "parameters": {"x": {}}}
        given = {"name": "hostile", **plain, **template}
        return row(
            name,
            code,
            "template_save",
            **given,
            _words=("template", "save", "-"),
            _stdin=json.dumps(given).encode(),
        )

    for text in (
        "{{x.__class__}}",
        "{{x|safe}}",
        "{{7*7}}",
        "{{ x",
        "{{}}",
        "{{x}}{{y}}",
        "{{__proto__}}",
        "{{x}} {% raw %}{{",
    ):
        yield save(f"a hole {text!r}", "template-invalid", tasks=[{"title": text}])
    yield save(
        "a hole in a name", "template-invalid", tasks=[{"title": "{{x}}", "input": {"{{x}}": 1}}]
    )
    yield save("a parameter that is a number", "template-invalid", tasks=[{"input": {"$param": 5}}])
    yield save(
        "a parameter with company", "template-invalid", tasks=[{"input": {"$param": "x", "y": 1}}]
    )
    yield save("a parameter nobody uses", "template-invalid", parameters={"x": {}, "y": {}})
    yield save(
        "a parameter called __proto__", "template-invalid", parameters={"x": {}, "__proto__": {}}
    )
    yield save("a parameter called a-b", "invalid-input", parameters={"a-b": {}})
    yield save(
        "a pattern that looks back", "invalid-input", parameters={"x": {"pattern": "(?<=a)b"}}
    )
    yield save(
        "a pattern that refers back", "invalid-input", parameters={"x": {"pattern": r"(a)\1"}}
    )
    yield save(
        "a pattern of many megabytes",
        "invalid-input",
        parameters={"x": {"pattern": r"\w{1000}{1000}"}},
    )
    yield save("a pattern cut off", "invalid-input", parameters={"x": {"pattern": "["}})
    yield save(
        "a template with a ring",
        "cycle-found",
        tasks=[
            {"key": "a", "title": "{{x}}", "depends_on": ["b"]},
            {"key": "b", "depends_on": ["a"]},
        ],
    )
    yield save("a template of none", "invalid-input", tasks=[])
    yield save(
        "a template with an unknown field",
        "template-invalid",
        tasks=[{"title": "{{x}}", "__proto__": 1}],
    )
    for name, parameters in (
        ("without a value", {}),
        ("with a value nobody asked for", {"x": "a", "y": "b"}),
        ("with a list for a text", {"x": ["a"]}),
        ("with a text for a number", {"x": "a", "n": "3"}),
        ("with true for a number", {"x": "a", "n": True}),
        ("with a number that is none", {"x": "a", "n": 1.5}),
    ):
        yield row(
            f"a run {name}",
            "template-invalid",
            "template_run",
            name="known",
            parameters=parameters,
            _words=("template", "run", "known", "--parameters", json.dumps(parameters)),
        )
    yield row(
        "a run that makes a bad key",
        "invalid-input",
        "template_run",
        name="known",
        parameters={"x": "\0"},
    )
