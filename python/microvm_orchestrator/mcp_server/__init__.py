"""The MCP door: the table of calls as tools, prompts, resources and durable MCP tasks.

The SDK's name is `mcp`, hence ours. Above stands the daemon; below, the service.
"""
