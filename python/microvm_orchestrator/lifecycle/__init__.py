"""One run from queued to finished. `live.py` is the file to read first."""
