"""Virtual machines, and how we talk to what runs inside them."""
