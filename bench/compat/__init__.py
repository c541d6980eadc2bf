"""Other people's libraries with ours under them: what runs, what is equal, how fast. `python -m bench.compat`."""
