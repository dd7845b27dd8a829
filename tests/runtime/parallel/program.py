"""What the rank of test_ranks does: as it is told."""

import os
import sys

from vllm_cls.runtime.parallel.follower import Follower

follower = Follower(sys.argv)
if follower.task["does"] == "end at once":
    sys.exit(7)
follower.join()
if follower.task["does"] == "be ready":
    follower.say("ready")
for name, arguments in follower.calls():
    if name == "end":
        os._exit(arguments[0])
    elif name == "fail":
        follower.agree(RuntimeError("here too"), exhausted=arguments[0])
        follower.say("goes on")
    else:
        follower.say(name, arguments)
