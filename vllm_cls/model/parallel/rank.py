"""A process that holds a part of a model, beside the caller's; a leader starts it (`python -m`)."""

from __future__ import annotations

import logging
import sys
import warnings

from ...runtime.parallel.follower import Follower


def main() -> None:
    """Load the model like the leader, and run its calls."""
    follower = Follower(sys.argv)
    warnings.simplefilter("ignore")  # the leader says them
    logging.getLogger("vllm_cls").setLevel(logging.ERROR)

    from ...runtime.parallel.replicas import closed
    from ..opening import load_model

    follower.join()
    try:
        loaded = load_model(follower.task["options"], follower.task["runtime"], follower)
    except Exception as failure:
        follower.say("failed", str(failure))
        return
    follower.say("ready")
    try:
        for name, arguments in follower.calls():
            before = loaded.engine.counters.snapshot()
            found = getattr(loaded.engine, name)(*arguments)
            if found is not None and follower.task["options"].data_parallel_size > 1:
                follower.say("answers", closed(found, loaded.engine.counters.snapshot() - before))
    except Exception as failure:  # the leader sees that this process ends
        logging.getLogger("vllm_cls").debug("a call failed", exc_info=failure)
        lines = str(failure).strip().splitlines() or [type(failure).__name__]
        sys.exit(f"vllm-cls, rank {follower.rank} ends: {lines[0]}")


if __name__ == "__main__":
    main()
