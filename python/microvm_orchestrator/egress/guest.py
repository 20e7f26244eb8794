"""What a guest is told of its way out: addresses and placeholders, and nothing that is secret."""

from __future__ import annotations

# Clients want a key that looks like one. It opens nothing.
PLACEHOLDER = "sk-ant-api03-placeholder-the-key-stays-on-the-host"
_LOCAL = "127.0.0.1,localhost,::1"


def environment(url: str, *, proxied: bool) -> dict[str, str]:
    """Give the variables by which programs in a guest find the endpoint.

    `url` is where it is reached there, as in `http://127.0.0.1:4001`; `proxied` tells whether the
    run may reach hosts beside the model APIs.
    """
    told = {
        "ANTHROPIC_BASE_URL": url,
        "ANTHROPIC_API_KEY": PLACEHOLDER,
        "OPENAI_BASE_URL": f"{url}/v1",
        "OPENAI_API_KEY": PLACEHOLDER,
        "MICROVM_REPORT_URL": f"{url}/report",
    }
    if proxied:
        for name in ("http_proxy", "https_proxy"):
            told[name] = told[name.upper()] = url
        # The endpoint itself is not asked for by way of itself.
        told["no_proxy"] = told["NO_PROXY"] = _LOCAL
    return told
