"""The agent that runs on a board: standard library, numpy and one engine; Python >= 3.8; imports nothing of the host."""
