"""What a failed job says: the words are those that the engines really used when the memory was limited."""

from __future__ import annotations

import errno

import pytest
from edgecompress_agent.errors import AgentError
from edgecompress_agent.worker import reason_of

ORT = "Fail: [ONNXRuntimeError] : 1 : FAIL : bfc_arena.cc:360 Failed to allocate memory for requested buffer of size 268435456"
XNNPACK = (
    "RuntimeError: XNNPack delegate failed to reshape runtimeNode number 38 (TfLiteXNNPackDelegate) failed to prepare."
)


@pytest.mark.parametrize(
    ("error", "said", "wanted"),
    [
        (
            MemoryError(),
            "MemoryError",
            "the memory of the board does not suffice: it ran out while loading (MemoryError)",
        ),
        (RuntimeError(), ORT, f"the memory of the board does not suffice: it ran out while loading ({ORT})"),
        (RuntimeError(), XNNPACK, f"{XNNPACK} This may be for want of memory."),
        (OSError(errno.ENOSPC, "No space"), "OSError: No space", "the disk of the board is full (OSError: No space)"),
        (OSError(errno.EIO, "broken"), "OSError: broken", "OSError: broken"),
        (AgentError("the file is damaged"), "edgecompress_agent.errors.AgentError: …", "the file is damaged"),
        (ValueError("x"), "ValueError: x", "ValueError: x"),
    ],
)
def test_the_reason_is_one_for_a_person(error: BaseException, said: str, wanted: str) -> None:
    assert reason_of(error, said, "loading") == wanted
