"""What a text delta costs more in a dialect than in our frames: ``python -m tests.bench.dialects``.

Our own frames go out as they are, so the translation is all that a dialect adds.
"""

from __future__ import annotations

import time
from statistics import median

from dialects import ag_ui, ai_sdk, shared
from events import StreamEvent, encode_event

DELTAS = 20_000
PASSES = 9


def cost_us(translator: shared.Translator, frames: list[bytes]) -> float:
    """Return the processor time of a frame, in microseconds."""
    began = time.process_time()
    for frame in frames:
        translator(frame)
    return 1e6 * (time.process_time() - began) / len(frames)


def main() -> None:
    start = encode_event(StreamEvent("start", run_id="r", thread_id="t"), 1)
    for text in ("word ", "東京の時刻", "x" * 200):
        delta = StreamEvent("text_delta", content=text, message_id="lc_run--0" + "a" * 35)
        frames = [encode_event(delta, n) for n in range(2, DELTAS)]
        for name in ("ai_sdk", "ag_ui"):
            costs = []
            for _ in range(PASSES):
                body = {"threadId": "t", "runId": "r"}
                made: shared.Translator = ai_sdk.Translator("r", {})
                translator = made if name == "ai_sdk" else ag_ui.Translator("r", body)
                translator(start)
                costs.append(cost_us(translator, frames))
            spread = f"{min(costs):.1f} to {max(costs):.1f}"
            print(f"{name} {len(text):4} characters: {median(costs):.1f} µs ({spread})")


if __name__ == "__main__":
    main()
