"""The truth: one transactional store behind about twenty atomic, idempotent verbs."""
