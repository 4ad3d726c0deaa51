"""The agent's own failures: a sentence that goes to the host as it is."""


class AgentError(Exception):
    """What was asked cannot be done on this board, and why. It becomes a failed result, or a verb's {"error": …}."""
