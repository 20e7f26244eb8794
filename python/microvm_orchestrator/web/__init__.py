"""The HTTP front end: REST and its OpenAPI document, the event stream, metrics, and the sockets."""
