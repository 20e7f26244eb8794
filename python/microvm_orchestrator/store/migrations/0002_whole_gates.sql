-- Whether a gate asks for all of its edges, as it was written. What is past its retention leaves the
-- counts, so they do not tell it for ever.
ALTER TABLE gate ADD COLUMN whole INTEGER NOT NULL DEFAULT 0;
UPDATE gate SET whole = need = total;
